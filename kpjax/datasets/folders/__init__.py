"""Which data set is in a folder?  Labelled images as annotation tools export them, understood by looking."""

from kpjax.datasets.folders.joining import Joined, join
from kpjax.datasets.folders.looking import Folder, open_folder
from kpjax.datasets.folders.parts import Part
from kpjax.datasets.folders.splitting import in_validation

__all__ = ["Folder", "Joined", "Part", "in_validation", "join", "open_folder"]
