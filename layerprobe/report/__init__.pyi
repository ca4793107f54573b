from .comparison import compare_runs as compare_runs
from .near_copies import near_copy_sentences as near_copy_sentences
from .page import figure_function as figure_function
from .page import findings as findings
from .page import write_report as write_report
