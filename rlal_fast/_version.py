"""The version of the package and of its compiled extension; packaging reads it from here."""

__version__ = "0.1.0"
