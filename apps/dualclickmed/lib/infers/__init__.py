"""From a request for a segmentation to its answer; `tasks` is where to begin reading."""
