"""Tasks from models of other libraries, which are imported only where they are asked for."""
