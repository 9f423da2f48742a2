"""Data sets -> three splits of equal-sized images: train / reward / test (method.md §1, §5).

splits.py        Split, its checks, and every stratified choice
preprocessing.py Normalisation and the batched Augmentation
image_data.py    ImageData, what a trainer is handed
device_batches.py  its training batches, made on a GPU
digits.py, cifar10.py, image_folder.py   one reader per source
sources.py       load(): a data set's name -> ImageData
"""

from rlal_fast.data.image_data import ImageData
from rlal_fast.data.preprocessing import Augmentation, Normalisation
from rlal_fast.data.sources import DATASETS, load
from rlal_fast.data.splits import Split

__all__ = ["DATASETS", "Augmentation", "ImageData", "Normalisation", "Split", "load"]
