"""Runs a command of a systemd unit under the restrictions of the unit, where no systemd runs.

    unshare --mount --propagation private python3 confine.py UNIT ROOT [KEY] [NAME=PROGRAM …]

UNIT is the file of the unit. Its command KEY (default: ExecStart) sees ROOT as the root directory,
in which systemd-sysusers and systemd-tmpfiles have made users and directories, with /usr, /dev,
/proc and /sys of the machine and with each PROGRAM as /usr/local/bin/NAME.

Every key of [Service] has to be known here, so that none is forgotten. Not applied are control
groups, and so the lists of devices. Needs root, libseccomp.so.2, mount and systemd-analyze.
"""

import ctypes
import errno
import grp
import mmap
import os
import pathlib
import pwd
import resource
import shlex
import socket
import subprocess
import sys

# Keys for the service manager itself or for its control groups, and a file that may be missing.
NOT_APPLIED = """Type NotifyAccess ExecStart ExecReload Restart RestartSec RestartPreventExitStatus
    TimeoutStartSec TimeoutStopSec WatchdogSec KillMode Delegate OOMPolicy DevicePolicy DeviceAllow
    SystemCallErrorNumber SystemCallArchitectures StateDirectoryMode CacheDirectoryMode
    RuntimeDirectoryMode EnvironmentFile""".split()
# Keys that `main` and `prepare_root` apply.
APPLIED_ELSEWHERE = """User Group SupplementaryGroups StateDirectory CacheDirectory RuntimeDirectory
    ProtectSystem ProtectHome ProtectKernelTunables PrivateTmp SystemCallFilter""".split()

libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p


class Comparison(ctypes.Structure):
    """A condition on an argument of a system call: `struct scmp_arg_cmp`."""

    _fields_ = [
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    ]


# Values of libseccomp, and options of prctl.
ALLOW = 0x7FFF0000
NOT_EQUAL, EQUAL, GREATER, MASKED = 1, 4, 6, 7
SET_NO_NEW_PRIVS, DROP_BOUNDING, AMBIENT, AMBIENT_CLEAR_ALL = 38, 24, 47, 4


def deny(error):
    return 0x00050000 | error


class Filter:
    """A seccomp filter, which is stacked on those that were loaded before."""

    def __init__(self, default=ALLOW):
        self.context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action, names, *conditions):
        """Adds a rule for each system call that this processor has."""
        rules = (Comparison * len(conditions))(*conditions)
        for name in names:
            number = seccomp.seccomp_syscall_resolve_name(name.encode())
            # Negative numbers stand for calls of other processors.
            if number < 0:
                continue
            result = seccomp.seccomp_rule_add_array(
                self.context, ctypes.c_uint32(action), number, len(conditions), rules
            )
            if result:
                sys.exit(f"seccomp rule for {name}: {os.strerror(-result)}")
        return self

    def load(self):
        result = seccomp.seccomp_load(self.context)
        if result:
            sys.exit(f"seccomp filter: {os.strerror(-result)}")


def system_calls(group):
    """Returns the system calls of a group of systemd, and of the groups in it."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = set()
    for line in text.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            names |= system_calls(name)
        elif name and not name.startswith("#"):
            names.add(name)
    return names


def read_unit(path):
    """Returns the lines of [Service] as pairs of key and value."""
    pairs, section = [], None
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and line[0] not in "#;":
            key, _, value = line.partition("=")
            pairs.append((key, value))
    return pairs


def namespaces():
    """RestrictNamespaces=yes"""
    filtered = Filter().add(deny(errno.ENOSYS), ["clone3"]).add(deny(errno.EPERM), ["setns"])
    for flag in [
        0x02000000,  # cgroup
        0x04000000,  # uts
        0x08000000,  # ipc
        0x10000000,  # user
        0x20000000,  # pid
        0x40000000,  # net
        0x00020000,  # mount
    ]:
        filtered.add(deny(errno.EPERM), ["unshare", "clone"], Comparison(0, MASKED, flag, flag))
    filtered.load()


def families(value):
    """RestrictAddressFamilies=, with a list of what is allowed"""
    allowed = {getattr(socket, name) for name in value.split()}
    filtered, refused = Filter(), deny(errno.EAFNOSUPPORT)
    highest = 64
    for family in set(range(highest)) - allowed:
        filtered.add(refused, ["socket"], Comparison(0, EQUAL, family))
    filtered.add(refused, ["socket"], Comparison(0, GREATER, highest - 1)).load()


def suid():
    """RestrictSUIDSGID=yes"""
    filtered = Filter().add(deny(errno.ENOSYS), ["openat2"])
    for bit in [0o4000, 0o2000]:
        for name, argument in [("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mknod", 1),
                               ("mknodat", 2), ("creat", 1)]:
            filtered.add(deny(errno.EPERM), [name], Comparison(argument, MASKED, bit, bit))
        for name, argument in [("open", 1), ("openat", 2)]:
            created = Comparison(argument, MASKED, os.O_CREAT, os.O_CREAT)
            mode = Comparison(argument + 1, MASKED, bit, bit)
            filtered.add(deny(errno.EPERM), [name], created, mode)
    filtered.load()


def realtime():
    """RestrictRealtime=yes"""
    filtered = Filter()
    for policy in [1, 2, 6]:  # FIFO, RR, deadline
        condition = Comparison(1, EQUAL, policy)
        filtered.add(deny(errno.EPERM), ["sched_setscheduler"], condition)
    filtered.load()


def executable_memory():
    """MemoryDenyWriteExecute=yes"""
    code = mmap.PROT_EXEC
    both = code | mmap.PROT_WRITE
    filtered = Filter().add(deny(errno.EPERM), ["mmap"], Comparison(2, MASKED, both, both))
    calls = ["mprotect", "pkey_mprotect"]
    filtered.add(deny(errno.EPERM), calls, Comparison(2, MASKED, code, code)).load()


def denied(*names):
    return lambda: Filter().add(deny(errno.EPERM), names).load()


# Switches, and what `yes` does.
SWITCHES = {
    "NoNewPrivileges": lambda: prctl(SET_NO_NEW_PRIVS, 1),
    "ProtectClock": denied(*system_calls("@clock")),
    "ProtectHostname": denied("sethostname", "setdomainname"),
    "ProtectKernelLogs": denied("syslog"),
    "ProtectKernelModules": denied(*system_calls("@module")),
    "LockPersonality": lambda: Filter()
    .add(deny(errno.EPERM), ["personality"], Comparison(0, NOT_EQUAL, 0))
    .load(),
    "RestrictNamespaces": namespaces,
    "RestrictRealtime": realtime,
    "RestrictSUIDSGID": suid,
    "MemoryDenyWriteExecute": executable_memory,
}


def prctl(option, first, second=0):
    if libc.prctl(option, first, second, 0, 0):
        sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def set_limit(limit, value):
    """Sets a limit, or what a container permits of it."""
    try:
        resource.setrlimit(limit, (value, value))
    except ValueError:
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (most, most))


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def prepare_root(root, values, user, group, programs):
    """Mounts the file systems below the root, read-only as with ProtectSystem=strict."""
    assert values["ProtectSystem"] == "strict", "only `strict` is known"
    (root / "run").mkdir(exist_ok=True)
    for name in ["usr", "dev", "proc", "sys", "tmp"]:
        (root / name).mkdir(exist_ok=True)
    for name in ["bin", "sbin", "lib", "lib64"]:
        if os.path.islink(f"/{name}") and not (root / name).is_symlink():
            (root / name).symlink_to(os.readlink(f"/{name}"))
    for name in ["ld.so.cache", "nsswitch.conf", "hosts"]:
        if os.path.exists(f"/etc/{name}"):
            (root / "etc" / name).write_bytes(pathlib.Path("/etc", name).read_bytes())
    mount("--bind", root, root)
    for name in ["usr", "dev", "proc", "sys"]:
        mount("--rbind", f"/{name}", root / name)
    mount("-t", "tmpfs", "tmpfs", root / "usr/local/bin")
    for name, program in programs:
        target = root / "usr/local/bin" / name
        target.touch()
        mount("--bind", program, target)
    kinds = [("StateDirectory", "var/lib"), ("CacheDirectory", "var/cache"),
             ("RuntimeDirectory", "run")]
    own = [(key, root / parent / values[key]) for key, parent in kinds if key in values]
    for key, folder in own:
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, user.pw_uid, group.gr_gid)
        os.chmod(folder, int(values[f"{key}Mode"], 8))
        mount("--bind", folder, folder)
        os.environ[f"{key.removesuffix('Directory').upper()}_DIRECTORY"] = (
            "/" + str(folder.relative_to(root))
        )
    read_only = [root, root / "usr", root / "usr/local/bin"]
    if values["ProtectKernelTunables"] == "yes":
        mount("--bind", root / "proc/sys", root / "proc/sys")
        read_only += [root / "proc/sys", root / "sys"]
    for folder in read_only:
        mount("-o", "remount,bind,ro", folder)
    if values["PrivateTmp"] == "yes":
        mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", root / "tmp")


def drop_privileges(user, group, groups):
    """Becomes the user, without capabilities and without a way to gain any."""
    last = int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        prctl(DROP_BOUNDING, capability)
    prctl(AMBIENT, AMBIENT_CLEAR_ALL)
    os.setgroups(groups)
    os.setresgid(group.gr_gid, group.gr_gid, group.gr_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def apply(unit):
    """Applies the keys that need no privileges, and returns those that load filters."""
    filters = []
    for name, value in unit:
        if name in NOT_APPLIED or name in APPLIED_ELSEWHERE:
            continue
        if name in SWITCHES:
            assert value == "yes", f"{name}={value}"
            filters.append(SWITCHES[name])
        elif name == "RestrictAddressFamilies":
            filters.append(lambda value=value: families(value))
        elif name == "UMask":
            os.umask(int(value, 8))
        elif name == "Environment":
            os.environ.update(word.split("=", 1) for word in shlex.split(value))
        elif name.startswith("Limit"):
            set_limit(
                getattr(resource, f"RLIMIT_{name[5:]}"),
                resource.RLIM_INFINITY if value == "infinity" else int(value),
            )
        elif name in ["CapabilityBoundingSet", "AmbientCapabilities"]:
            assert value == "", f"{name}={value}"
        else:
            sys.exit(f"unknown key of the unit: {name}")
    return filters


def main():
    unit_file, root, *rest = sys.argv[1:]
    root = pathlib.Path(root).resolve()
    programs = [word.split("=", 1) for word in rest if "=" in word]
    key = next((word for word in rest if "=" not in word), "ExecStart")
    unit = read_unit(unit_file)
    values = dict(unit)

    # The users are those of the root, not of the machine.
    for file in ["passwd", "group"]:
        mount("--bind", root / "etc" / file, f"/etc/{file}")
    user, group = pwd.getpwnam(values["User"]), grp.getgrnam(values["Group"])
    groups = [grp.getgrnam(name).gr_gid for name in values["SupplementaryGroups"].split()]
    prepare_root(root, values, user, group, programs)
    allowed = system_calls(values["SystemCallFilter"])
    os.chroot(root)
    os.chdir("/")

    filters = apply(unit)
    drop_privileges(user, group, groups)
    # First, because only root may load filters without it.
    filters.sort(key=lambda load: load is not SWITCHES["NoNewPrivileges"])
    for load in filters:
        load()
    # Last, because it does not allow further filters.
    Filter(deny(errno.EPERM)).add(ALLOW, allowed).load()
    command = shlex.split(values[key])
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
