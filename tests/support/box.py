"""A machine for tests: a real systemd as PID 1 (system mode) in Linux namespaces, without a container engine.

The box is a copy-on-write overlay of a root tree, with pid, mount, cgroup, net, uts and ipc namespaces, a pure cgroup
v2 hierarchy, /run, /tmp, /dev, boot id and journal that are private to it. It boots in about half a second. Nothing
reaches the outer file system, and all of it dies with the holder process (a chain of PDEATHSIG). Needs root with
CAP_SYS_ADMIN, util-linux, and systemd with dbus in the root tree.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "pivot_root")
DROPPED = ",".join(
    f"-{capability}"
    for capability in (
        "sys_time", "sys_module", "sys_rawio", "syslog", "audit_control", "audit_read", "mac_admin", "mac_override",
        "wake_alarm", "block_suspend",
    )
)  # fmt: skip
"""Capabilities by which the box could reach state of the whole kernel: clock, modules, raw I/O, audit."""
BOOT_LIMIT_S = 120.0

HOLDER = r"""
set -eu
# Runs in a private mount and cgroup namespace whose cgroup root is $CG, which was joined before unshare.
# Leave that cgroup, so that PID 1 of the box is the only process at the top of its tree.
echo $$ > "$ORIG/cgroup.procs"
mount --make-rprivate /
mount -t tmpfs -o mode=755 sdbox "$W/fs"
mkdir -p "$W/fs/up/etc/systemd" "$W/fs/wk" "$W/fs/root"
python3 - "$W/fs/up" <<'P'
import os, sys
up = sys.argv[1]
# Hide the outer machine's enabled units, fstab and journals (overlay: opaque directories).
for d in ("etc/systemd/system", "etc/systemd/user", "etc/systemd/system.conf.d", "etc/systemd/user.conf.d",
          "etc/systemd/logind.conf.d", "etc/systemd/journald.conf.d", "etc/init.d", "etc/cron.d",
          "var/log/journal", "var/lib/systemd/linger", "var/lib/systemd/timers"):
    p = os.path.join(up, d); os.makedirs(p, exist_ok=True)
    os.setxattr(p, "trusted.overlay.opaque", b"y")
open(os.path.join(up, "etc/fstab"), "w").close()
open(os.path.join(up, "etc/hostname"), "w").write("sdbox\n")
P
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$W/fs/up,workdir=$W/fs/wk" "$W/fs/root"
if [ -n "${PREBOOT:-}" ]; then R="$W/fs/root" sh -eu -c "$PREBOOT"; fi
n=0
while :; do
  n=$((n+1)); echo "boot $n" >> "$W/boots"
  rc=0; setpriv --pdeathsig KILL unshare --mount --uts --ipc --net --pid --fork --kill-child=KILL \
      sh "$W/pid1.sh" || rc=$?
  echo "exit $rc" >> "$W/boots"
  # A reboot in a pid namespace is reported as SIGHUP (129), a halt as SIGINT (130). After a power cut (SIGKILL of
  # PID 1; util-linux 2.38 exits with 1) the test has left a marker: boot again.
  if [ "$rc" = 129 ]; then continue; fi
  if [ -e "$W/again" ]; then rm -f "$W/again"; continue; fi
  exit $rc
done
"""
"""Runs outside the box: mounts the overlay, and boots the box again after a reboot or a power cut."""

PID1 = r"""
set -eu
R="$W/fs/root"
echo 0 > "$CG/cgroup.procs"                                # this shell becomes PID 1 of the box
mount --make-rprivate /
mount --bind "$R" "$R"; mount --make-private "$R"
mount -t proc  -o nosuid,nodev,noexec proc "$R/proc"
for p in sys irq bus fs sysrq-trigger; do                  # kernel-global settings: read-only, also for systemd-sysctl
  [ -e "$R/proc/$p" ] && mount --bind "$R/proc/$p" "$R/proc/$p" && mount -o remount,bind,ro "$R/proc/$p"; done
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$R/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$R/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$R/tmp"
mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$R/dev"
for d in null zero full random urandom tty; do : > "$R/dev/$d"; mount --bind "/dev/$d" "$R/dev/$d"; done
mkdir "$R/dev/pts" "$R/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$R/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$R/dev/shm"
ln -s pts/ptmx "$R/dev/ptmx"; ln -s /proc/self/fd "$R/dev/fd"
for i in 0:stdin 1:stdout 2:stderr; do ln -s /proc/self/fd/${i%%:*} "$R/dev/${i#*:}"; done
for b in ${BINDS:-}; do s=${b%%:*}; d=${b#*:}; mkdir -p "$R$d"; mount --rbind "$s" "$R$d"; done
python3 -c 'import uuid;print(uuid.uuid4())' > "$R/run/.boot_id" # each boot has an id, as a real one has
boot_id=$R/proc/sys/kernel/random/boot_id
mount --bind "$R/run/.boot_id" "$boot_id"; mount -o remount,bind,ro "$boot_id"
hostname sdbox
ip link set lo up 2>/dev/null || true
cd "$R"; mkdir -p .old; pivot_root . .old
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=sdbox TERM=dumb sh -c '
  umount -l /.old; rmdir /.old 2>/dev/null || :
  exec setpriv --bounding-set '"$DROP"' -- /lib/systemd/systemd --system '"$SDARGS"
"""
"""Becomes PID 1 of the box: mounts what a machine has, changes root, executes systemd."""

AS_USER = r"""
u=$1; shift; i=$(id -u "$u"); h=$(getent passwd "$u" | cut -d: -f6); cd "$h"
exec setpriv --reuid "$u" --regid "$u" --init-groups env HOME="$h" USER="$u" LOGNAME="$u" \
  XDG_RUNTIME_DIR=/run/user/$i DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$i/bus "$@"
"""
JOIN = 'd=/sys/fs/cgroup/driver; mkdir -p $d; echo $$ > $d/cgroup.procs; exec "$@"'
"""Enters a cgroup inside the box: a process started by nsenter would otherwise stay outside the box's tree."""


class Unavailable(RuntimeError):
    """This machine cannot boot a box; the message is the reason."""


class Box:
    """One machine. ``preboot`` is shell code that may prepare its root ``$R``; ``binds`` are ``source:target``."""

    def __init__(self, root: str = "/", *, preboot: str = "", binds: Iterable[str] = ()) -> None:
        self._root = root
        self._preboot = preboot
        self._binds = list(binds)
        self.pid1 = 0

    def start(self) -> None:
        """Boot. Raise Unavailable if this machine cannot."""
        if os.geteuid() != 0:
            raise Unavailable("it needs root (CAP_SYS_ADMIN)")
        for tool in TOOLS:
            if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
                raise Unavailable(f"{tool} is not installed")
        if not Path(self._root, "lib/systemd/systemd").exists():
            raise Unavailable(f"there is no systemd under {self._root}")
        outside = _cgroup()
        self._folder = Path(tempfile.mkdtemp(prefix="box."))
        (self._folder / "fs").mkdir()
        self._cgroup = outside / f"box-{os.getpid()}-{secrets.token_hex(3)}"
        try:
            self._cgroup.mkdir()
        except OSError as error:
            raise Unavailable(f"a cgroup cannot be made: {error}") from None
        (self._folder / "holder.sh").write_text(HOLDER)
        (self._folder / "pid1.sh").write_text(PID1)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "W": str(self._folder), "CG": str(self._cgroup),
            "ORIG": str(outside), "LOWER": self._root, "PREBOOT": self._preboot, "BINDS": " ".join(self._binds),
            "DROP": DROPPED,
            "SDARGS": "--unit=multi-user.target --log-target=journal-or-kmsg --log-level=info --show-status=1",
        }  # fmt: skip
        enter = 'echo $$ > "$CG/cgroup.procs"; exec unshare --mount --cgroup sh "$W/holder.sh"'
        with (self._folder / "console.log").open("wb") as console:
            self._holder = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "sh", "-c", enter], env=environment, stdin=subprocess.DEVNULL,
                stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_booted()
        except Unavailable:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the box, and remove its folders."""
        with suppress(ProcessLookupError):
            if self.pid1 and self._holder.poll() is None:
                os.kill(self.pid1, signal.SIGKILL)  # every process of the pid namespace goes with it
        try:
            self._holder.wait(5 if self.pid1 else 0)
        except subprocess.TimeoutExpired:
            self._holder.kill()
            self._holder.wait()
        for _ in range(100):  # the kernel empties cgroups a moment after their processes have ended
            try:
                for folder, _, _ in os.walk(self._cgroup, topdown=False):
                    os.rmdir(folder)
                break
            except OSError:
                time.sleep(0.02)
        shutil.rmtree(self._folder, ignore_errors=True)

    def reboot(self) -> None:
        self.run("systemctl", "reboot", check=False)
        self._wait_gone()
        self._wait_booted()

    def power_cut(self) -> None:
        """Kill PID 1: all processes vanish between two instructions, /run and /tmp are lost, the disk stays."""
        (self._folder / "again").touch()
        os.kill(self.pid1, signal.SIGKILL)
        self._wait_gone()
        self._wait_booted()

    def run(
        self,
        *argv: str,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = BOOT_LIMIT_S,
        input: str | None = None,  # noqa: A002  # as subprocess.run names it
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the box, as root or as ``user`` with that user's session bus."""
        command = self.argv(*argv, user=user, env=env)
        result = subprocess.run(command, text=True, capture_output=True, timeout=timeout, input=input)
        assert not check or result.returncode == 0, f"{argv}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result

    def argv(self, *argv: str, user: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """The command by which the outer machine runs ``argv`` in the box."""
        fixed = {"PATH": ADMIN_PATH, "LANG": "C.UTF-8", "TERM": "dumb", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        return [
            *f"nsenter -t {self.pid1} -m -u -i -n -p -C -r -w sh -c".split(), JOIN, "sh",
            "env", "-i", *(f"{name}={value}" for name, value in {**fixed, **(env or {})}.items()),
            *(["sh", "-c", AS_USER, "sh", user] if user else []), *argv,
        ]  # fmt: skip

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "-c", script)

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The entries of the box's journal."""
        self.run("journalctl", "--sync", check=False)
        result = self.run("journalctl", "-o", "json", "--no-pager", "-q", *matches, check=False)
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_booted(self) -> None:
        deadline = time.monotonic() + BOOT_LIMIT_S
        self.pid1 = 0
        while not (pid := self._find_pid1()):
            self._check_boot(deadline)
            time.sleep(0.01)
        self.pid1 = pid
        while self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip() not in (
            "running",
            "degraded",
        ):
            self._check_boot(deadline)
            time.sleep(0.03)

    def _check_boot(self, deadline: float) -> None:
        if self._holder.poll() is not None or time.monotonic() > deadline:
            console = (self._folder / "console.log").read_text(errors="replace")
            raise Unavailable(f"the box did not boot (exit code {self._holder.returncode}):\n{console[-2000:]}")

    def _find_pid1(self) -> int:
        """PID 1 of the box by its outer number, or 0: the only child of the only child (unshare) of the holder."""
        with suppress(OSError):
            for middle in _children(self._holder.pid):
                for pid in _children(middle):
                    status = Path(f"/proc/{pid}/status").read_text().splitlines()
                    inner = [line.split()[-1] for line in status if line.startswith("NSpid:")]
                    if inner == ["1"] and Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                        return pid
        return 0

    def _wait_gone(self) -> None:
        deadline = time.monotonic() + BOOT_LIMIT_S
        while Path(f"/proc/{self.pid1}").exists():
            assert time.monotonic() < deadline, f"PID 1 of the box ({self.pid1}) does not end"
            time.sleep(0.01)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cgroup() -> Path:
    """The cgroup v2 folder of this process."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    mount = next((fields[1] for fields in mounts if fields[2] == "cgroup2"), None)
    if mount is None:
        raise Unavailable("no cgroup v2 hierarchy is mounted")
    paths = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.removeprefix("0::") for line in paths if line.startswith("0::")), "/")
    return Path(mount + own.rstrip("/"))
