"""The browser that tests open pages with: Chromium or Chrome, where it is installed."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("LAYERPROBE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
