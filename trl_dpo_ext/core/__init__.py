"""Core definitions: what a loss reads and how it is declared. Imports only torch and the standard library."""
