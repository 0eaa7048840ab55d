"""``cad-fast edit make | inspect | diff | verify | export | import``: edits, from scores to files of other formats."""

from . import edit_diff, edit_export, edit_import, edit_inspect, edit_make, edit_verify

HELP = "make edits from scores, look into them, check them, and write and read other formats"
EXAMPLE = "cad-fast edit make runs/cat --erase --ratio 0.03 -o edits/no-cat"
COMMANDS = {
    "make": edit_make,
    "inspect": edit_inspect,
    "diff": edit_diff,
    "verify": edit_verify,
    "export": edit_export,
    "import": edit_import,
}
