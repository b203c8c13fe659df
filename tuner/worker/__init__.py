"""The worker's room: torch is at home here; Optuna, Ray and the study are never seen."""

import logging

# Before bitsandbytes is imported: it logs an error about an optional CPU kernel that it does without (0.50).
logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
