"""From table columns to rows of embeddings: feature definitions, their encoding and their fitting."""
