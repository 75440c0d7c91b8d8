"""Pure functions from arrays to pictures, and from pictures to one self-contained HTML page."""
