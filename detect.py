"""Find objects in images and videos: draw them, and write them as JSON.

    python detect.py --checkpoint runs/shapes --out found photo.jpg 'holiday/*.jpg' folder/ clip.mp4

Exit codes: 0 all done; 1 some inputs could not be read or some results not written (each is named, the rest is done);
2 nothing could run.
"""

import sys

from kpjax.commands.interrupt import leaving_at_once

with leaving_at_once():
    from kpjax.commands.detect import main

if __name__ == "__main__":
    sys.exit(main())
