"""Views of records for notebooks: short HTML with tables, shaded tokens and small pictures; no view runs a model."""
