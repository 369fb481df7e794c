"""From columns of a table to rows of embeddings: feature definitions, their encoding and fitting."""
