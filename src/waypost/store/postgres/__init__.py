"""The PostgreSQL engine: many nodes, one database."""
