"""Check a LaunchAgent plist on any system, for mistakes that launchd accepts silently."""

import plistlib
import xml.parsers.expat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Types = type | tuple[type, ...]

TEXTS: Final = """
    Label UserName GroupName Program RootDirectory WorkingDirectory StandardInPath StandardOutPath StandardErrorPath
    ProcessType
"""
FLAGS: Final = """
    Disabled EnableGlobbing EnableTransactions EnablePressuredExit OnDemand RunAtLoad InitGroups StartOnMount Debug
    WaitForDebugger AbandonProcessGroup LowPriorityIO LowPriorityBackgroundIO LaunchOnlyOnce LegacyTimers SessionCreate
    MaterializeDatalessFiles
"""
NUMBERS: Final = "TimeOut ExitTimeOut ThrottleInterval StartInterval Nice"
TABLES: Final = "EnvironmentVariables SoftResourceLimits HardResourceLimits MachServices Sockets LaunchEvents"
LISTS: Final = "ProgramArguments WatchPaths QueueDirectories LimitLoadToHosts LimitLoadFromHosts"

KEYS: Final[dict[str, Types]] = {
    **{
        key: kind
        for keys, kind in ((TEXTS, str), (FLAGS, bool), (NUMBERS, int), (TABLES, dict), (LISTS, list))
        for key in keys.split()
    },
    "KeepAlive": (bool, dict), "Umask": (int, str), "StartCalendarInterval": (dict, list),
    "LimitLoadToSessionType": (str, list), "AssociatedBundleIdentifiers": (str, list),
}  # fmt: skip
KEEP_ALIVE: Final[dict[str, Types]] = {
    **dict.fromkeys(("SuccessfulExit", "Crashed", "NetworkState", "AfterInitialDemand"), bool),
    **dict.fromkeys(("PathState", "OtherJobEnabled"), dict),
}
PATHS: Final = ("StandardOutPath", "StandardErrorPath", "StandardInPath", "WorkingDirectory", "RootDirectory")
PROCESS_TYPES: Final = ("Background", "Standard", "Adaptive", "Interactive")
SESSION_TYPES: Final = ("Aqua", "Background", "LoginWindow", "StandardIO", "System")


def lint(path: Path) -> list[str]:
    """The mistakes in the plist, one sentence each."""
    data = path.read_bytes()
    try:
        plist = plistlib.loads(data)
    except (plistlib.InvalidFileException, xml.parsers.expat.ExpatError, ValueError) as error:
        return [f"not a plist: {error}"]
    if not isinstance(plist, dict):
        return ["the top is not a dictionary"]
    return [
        *(f"key twice: {key} (launchd keeps one, without a message)" for key in repeated_keys(data)),
        *wrong_types(plist, KEYS, ""),
        *(
            wrong_types(plist["KeepAlive"], KEEP_ALIVE, "KeepAlive.")
            if isinstance(plist.get("KeepAlive"), dict)
            else ()
        ),
        *wrong_values(plist, path),
    ]


def repeated_keys(data: bytes) -> list[str]:
    """Keys that occur twice in one dictionary; plistlib and launchd keep one of them."""
    repeated, seen, text = list[str](), list[set[str]](), list[str]()
    parser = xml.parsers.expat.ParserCreate()

    def start(name: str, _: dict[str, str]) -> None:
        text.clear()
        if name == "dict":
            seen.append(set())

    def end(name: str) -> None:
        if name == "dict":
            seen.pop()
        if name == "key":
            key = "".join(text)
            if key in seen[-1]:
                repeated.append(key)
            seen[-1].add(key)

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    parser.Parse(data, True)
    return repeated


def wrong_types(values: dict[str, Any], types: dict[str, Types], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if key not in types:
            yield f"unknown key {prefix}{key}"
        else:
            allowed = types[key]
            if type(value) not in (allowed if isinstance(allowed, tuple) else (allowed,)):  # a bool is no int here
                yield f"{prefix}{key}: {type(value).__name__} {value!r}"


def wrong_values(plist: dict[str, Any], path: Path) -> Iterator[str]:
    if plist.get("Label") != path.stem:
        yield f"Label {plist.get('Label')} is not the name of the file {path.name}"
    arguments = [str(argument) for argument in plist.get("ProgramArguments", ())]
    program = str(plist.get("Program") or next(iter(arguments), ""))
    if not program.startswith("/"):
        yield f"the program is not an absolute path: {program!r}"
    for key in PATHS:
        if not str(plist.get(key, "/")).startswith("/"):
            yield f"{key}: {plist[key]!r} (launchd expands neither ~ nor $HOME)"
    environment = plist.get("EnvironmentVariables", {})
    for value in (*arguments, *map(str, environment.values())):
        if value.startswith("~") or "$HOME" in value or "${" in value:
            yield f"not expanded by launchd: {value}"
    for name, value in environment.items():
        if not isinstance(value, str):
            yield f"EnvironmentVariables.{name}: not a string"
    if "PATH" not in environment:
        yield "no PATH: launchd gives /usr/bin:/bin:/usr/sbin:/sbin, without Homebrew's tmux, git and node"
    if (kind := plist.get("ProcessType", "Standard")) not in PROCESS_TYPES:
        yield f"ProcessType {kind}"
    sessions = plist.get("LimitLoadToSessionType", [])
    for session in [sessions] if isinstance(sessions, str) else sessions:
        if session not in SESSION_TYPES:
            yield f"LimitLoadToSessionType {session}"
    if isinstance(plist.get("Umask"), int) and plist["Umask"] > 0o777:
        yield "Umask is decimal: 63 is 0o077"
