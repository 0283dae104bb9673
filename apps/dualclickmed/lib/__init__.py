"""DualClickMed: interactive 3D medical segmentation with a global and a local expert."""

__version__ = "0.2.0"
