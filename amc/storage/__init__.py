"""Files on disk: written atomically, and results kept by what determines them. Knows no format of its own."""
