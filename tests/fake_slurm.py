"""A Slurm of text files: sbatch, squeue, scontrol and srun as small scripts, for tests of what is asked of them."""

from pathlib import Path
import stat

SBATCH = """\
#!/bin/sh
# counts up a job number and keeps the script; an array gets one line a task in `jobs`
n=$(($(cat "$FAKE/number" 2>/dev/null || echo 100) + 1))
echo $n > "$FAKE/number"
cp "$1" "$FAKE/script-$n.sh"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ -n "$last" ]; then
    for task in $(seq 0 $last); do echo "${n}_$task|$name|PENDING|None" >> "$FAKE/jobs"; done
else
    echo "$n|$name|PENDING|None" >> "$FAKE/jobs"
fi
[ -e "$FAKE/refuses" ] && { echo "sbatch: error: Batch job submission failed: Invalid partition name" >&2; exit 1; }
echo "Submitted batch job $n"
"""
SQUEUE = """\
#!/bin/sh
[ -e "$FAKE/silent" ] && exit 1
echo asked >> "$FAKE/asked"
cat "$FAKE/jobs" 2>/dev/null
exit 0
"""
SCONTROL = """\
#!/bin/sh
echo "$@" >> "$FAKE/scontrol"
[ "$1" = show ] && [ "$2" = config ] && echo "MaxArraySize            = ${FAKE_LARGEST:-1001}"
[ "$1" = show ] && [ "$2" = hostnames ] && printf 'n1\\nn2\\n'
exit 0
"""
SCRIPTS = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "srun": "#!/bin/sh\nexit 1\n"}


class FakeSlurm:
    """The scripts in `folder`/bin and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name, text in SCRIPTS.items():
            path = self.bin / name
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def jobs(self) -> dict[str, str]:
        """Job -> state."""
        return {line.split("|")[0]: line.split("|")[2] for line in self._lines("jobs")}

    def set(self, job: str, state: str | None) -> None:
        """Gives a job another state, or lets Slurm forget it."""
        kept = []
        for line in self._lines("jobs"):
            number, name, old, why = line.split("|")
            if number != job:
                kept.append(f"{number}|{name}|{old}|{why}\n")
            elif state is not None:
                kept.append(f"{number}|{name}|{state}|{why}\n")
        (self.folder / "jobs").write_text("".join(kept))

    def script(self, number: int) -> str:
        """What sbatch was given."""
        return (self.folder / f"script-{number}.sh").read_text()

    @property
    def scripts(self) -> int:
        """How many calls of sbatch there were."""
        return len(list(self.folder.glob("script-*.sh")))

    def asked(self, command: str) -> list[str]:
        """The arguments of each call of scontrol, or a line for each of squeue."""
        return self._lines(command)

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []
