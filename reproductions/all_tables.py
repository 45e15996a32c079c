"""All six tables and the learning process in one go; a run that several of them show is trained once.

tox -e reproduce-all                                      76 toy runs on digits
tox -e reproduce-all -- --scale small --data FOLDER       76 runs of Imagenette a seed
tox -e reproduce-all -- --minutes 60                      what an hour has room for; call again to go on
"""

import sys

from reproductions.learning_process import TABLE as LEARNING
from reproductions.table1_stage_ablation import TABLE as TABLE1
from reproductions.table2_topk_probe import TABLE as TABLE2
from reproductions.table3_manipulation import TABLE as TABLE3
from reproductions.table4_erasing_rate import TABLE as TABLE4
from reproductions.table5_backbones import TABLE as TABLE5
from reproductions.table6_resnet50 import TABLE as TABLE6

TABLES = (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6, LEARNING)

if __name__ == "__main__":
    from dcvit.reproducing import reproduce

    sys.exit(reproduce(*TABLES))
