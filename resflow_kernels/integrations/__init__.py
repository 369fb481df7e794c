"""The package beside other libraries, each in a module of its own that imports the other library when it is used."""
