"""What a person looks at after a run: figures, tables and one HTML page."""
