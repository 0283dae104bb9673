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

# Options.
STRATEGY = "strategy"
CT_WINDOW = "ct_window"
DEVICE = "device"
RESULT_EXTENSION = "result_extension"
RESULT_DTYPE = "result_dtype"
RESULT_COMPRESS = "result_compress"

# What the server adds before a task sees the request.
IMAGE = "image"
MODEL = "model"
MODALITY = "modality"

EXPECTED = frozenset(
    {
        FOREGROUND,
        BACKGROUND,
        LABEL,
        POINTS,
        POINT_LABELS,
        LABEL_PROMPT,
        ROI,
        STRATEGY,
        CT_WINDOW,
        DEVICE,
        RESULT_EXTENSION,
        RESULT_DTYPE,
        RESULT_COMPRESS,
        IMAGE,
        MODEL,
        MODALITY,
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
        "label_info",
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
SHAPE = "shape"
LATENCIES = "latencies"
