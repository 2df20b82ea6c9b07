"""Pictures of attribution graphs: what is drawn, where it stands, and how it is drawn."""
