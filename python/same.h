// same_entries and same_sizes: whether dictionaries hold what they held, in a few nanoseconds per entry. Calls through
// pybind11 take longer than the comparison, so these are plain functions of Python's C API.
#pragma once

#include <Python.h>

namespace resflow::runtime {

// Whether a call's arguments are a list of dictionaries and a list; sets an error if not.
inline bool are_lists(PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyList_CheckExact(arguments[0]) || !PyList_CheckExact(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "dictionaries and what they held must be two lists");
    return false;
  }
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
    if (!PyDict_Check(PyList_GET_ITEM(arguments[0], i))) {
      PyErr_SetString(PyExc_TypeError, "the first list's elements must be dictionaries");
      return false;
    }
  }
  return true;
}

// Whether the dictionaries' values, one after another, are the very objects of a list.
inline PyObject* same_entries(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!are_lists(arguments, count)) return nullptr;
  PyObject* const held = arguments[1];
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
    PyObject* const dictionary = PyList_GET_ITEM(arguments[0], i);
    if (at + PyDict_GET_SIZE(dictionary) > PyList_GET_SIZE(held)) Py_RETURN_FALSE;
    Py_ssize_t position = 0;
    PyObject* value = nullptr;
    while (PyDict_Next(dictionary, &position, nullptr, &value)) {
      if (value != PyList_GET_ITEM(held, at++)) Py_RETURN_FALSE;
    }
  }
  return PyBool_FromLong(at == PyList_GET_SIZE(held));
}

// Whether the dictionaries' sizes are those of a list.
inline PyObject* same_sizes(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (!are_lists(arguments, count)) return nullptr;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
    const Py_ssize_t size = PyDict_GET_SIZE(PyList_GET_ITEM(arguments[0], i));
    if (size != PyLong_AsSsize_t(PyList_GET_ITEM(arguments[1], i))) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

}  // namespace resflow::runtime
