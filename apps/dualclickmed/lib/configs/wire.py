"""The names that requests and results use on the wire, those of MONAI Label and its clients included."""

from __future__ import annotations

# What a click request may hold besides one key for each label.
FOREGROUND = "foreground"
BACKGROUND = "background"
LABEL = "label"
POINTS = "points"
POINT_LABELS = "point_labels"
LABEL_PROMPT = "label_prompt"
ROI = "roi"
LOCKED = "locked"

# Options.
STRATEGY = "strategy"
CLICKS = "clicks"
EXISTING = "existing"
OVERLAP = "overlap"
CT_WINDOW = "ct_window"
DEVICE = "device"
RESULT_EXTENSION = "result_extension"
RESULT_DTYPE = "result_dtype"
RESULT_COMPRESS = "result_compress"
RESULT_CONTENT = "result_content"

# What goes with an uploaded segmentation, or asks for one: names, in the order of their values.
LABEL_INFO = "label_info"

# What the server adds before a task sees the request.
IMAGE = "image"
MODEL = "model"
MODALITY = "modality"
EXISTING_PATH = "existing_path"
EXISTING_INFO = "existing_info"
IMAGE_NOTES = "image_notes"
UPLOADED = "uploaded"
LABEL_FILE = "label_file"
"""A segmentation that came with the request; clients call both it and the wanted label `LABEL`."""

EXPECTED = frozenset(
    {
        FOREGROUND,
        BACKGROUND,
        LABEL,
        POINTS,
        POINT_LABELS,
        LABEL_PROMPT,
        ROI,
        LOCKED,
        STRATEGY,
        CLICKS,
        EXISTING,
        OVERLAP,
        CT_WINDOW,
        DEVICE,
        RESULT_EXTENSION,
        RESULT_DTYPE,
        RESULT_COMPRESS,
        RESULT_CONTENT,
        IMAGE,
        MODEL,
        MODALITY,
        EXISTING_PATH,
        EXISTING_INFO,
        IMAGE_NOTES,
        UPLOADED,
        LABEL_FILE,
        LABEL_INFO,
    }
)
"""Keys that the tasks read."""

IGNORED = frozenset(
    {
        "_id",
        "_image_id",
        "client_id",
        "description",
        "gpus",
        "images",
        "label_tag",
        "level",
        "location",
        "logging",
        "max_batch_size",
        "max_workers",
        "min_poly_area",
        "multi_gpu",
        "output",
        "reset_state",
        "restore_label_idx",
        "result_write_to_file",
        "save_label",
        "session",
        "size",
        "skip_writer",
        "slice",
        "tile_size",
        "timeout",
        "user",
    }
)
"""Keys that MONAI Label and its clients add and that mean nothing to these tasks."""

RESERVED = EXPECTED | IGNORED
"""Words that cannot be a label's name, because a label's clicks come under its name."""

# What a result's JSON holds.
LABEL_NAMES = "label_names"
LABELS = "labels"
STRATEGIES = "strategies"
CENTROIDS = "centroids"
VOXELS = "voxels"
BOXES = "boxes"
CHANGED = "changed"
SUGGESTIONS = "suggestions"
NOTES = "notes"
SHAPE = "shape"
LATENCIES = "latencies"
