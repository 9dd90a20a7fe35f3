"""Data sets as people have them: folders, tables, arrays, known sets. Each becomes an `Images`."""
