"""The command line of Claude Code 2.1.197 and 2.1.332: its options, with the hidden ones, and how it reads them.

The client uses commander. An option with one value takes the next word, whatever it is; one with an optional value
takes the next word unless that begins with a dash; one with many takes all words up to the next with a dash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from yolo_supervisor.formats import claude


class Takes(StrEnum):
    """The number of values that an option takes."""

    NONE = "none"
    ONE = "one"
    OPTIONAL = "optional"
    MANY = "many"


_DECLARED = """
-d, --debug [filter]
-d2e, --debug-to-stderr
--debug-file <path>
--verbose
-p, --print
--bare
--safe-mode
--init
--init-only
--maintenance
--output-format <format>
--json-schema <schema>
--include-hook-events
--include-partial-messages
--forward-subagent-text
--session-mirror
--await-claim
--input-format <format>
--await-initialize
--dangerously-skip-permissions
--allow-dangerously-skip-permissions
--thinking <mode>
--thinking-display <display>
--max-thinking-tokens <tokens>
--max-turns <turns>
--max-budget-usd <amount>
--task-budget <tokens>
--replay-user-messages
--prompt-suggestions [value]
--enable-auth-status
--allowedTools, --allowed-tools <tools...>
--tools <tools...>
--restricted
--disallowedTools, --disallowed-tools <tools...>
--mcp-config <configs...>
--permission-prompt-tool <tool>
--permission-prompts <target>
--system-prompt <prompt>
--system-prompt-file <file>
--append-system-prompt <prompt>
--append-system-prompt-file <file>
--system-prompt-snapshot <on|off>
--append-subagent-system-prompt <prompt>
--append-subagent-system-prompt-file <file>
--plan-mode-instructions <instructions>
--exclude-dynamic-system-prompt-sections
--permission-mode <mode>
--inherit-permission-mode <mode>
-c, --continue
-r, --resume [value]
--fork-session
--watch-artifact <artifact>
--watch-artifact-no-autoreact <artifact>
--prefill <text>
--prefill-b64 <b64>
--deep-link-origin
--deep-link-repo <slug>
--deep-link-last-fetch <ms>
--deep-link-cwd-b64 <b64>
--from-pr [value]
--no-session-persistence
--resume-session-at <id>
--resume-drops-turn <id>
--reply-on-resume
--rewind-files <id>
--model <model>
--include-unsupported-models
--effort <level>
--fast-mode <on|off>
--agent <agent>
--betas <betas...>
--fallback-model <model>
--workload <tag>
--settings <file-or-json>
--client-data-url <url>
--allow-other-models
--managed-settings <json>
--managed-settings-in-initialize
--host-auth-is-org-sign-in
--add-dir <directories...>
--project-config-root <dir>
--ide
--desktop
--strict-mcp-config
--session-id <uuid>
-n, --name <name>
--agents <json-or-file>
--setting-sources <sources>
--plugin-dir <path>
--plugin-dir-no-mcp <path>
--plugin-url <url>
--disable-slash-commands
--chrome
--no-chrome
--file <specs...>
-w, --worktree [name]
--tmux
--advisor <model>
--autocompact <auto|tokens>
--enable-auto-mode
--proactivity <level>
--agents-view-if-allowed
--bg, --background
--messaging-socket-path <path>
--brief
--ax-screen-reader
--channels <servers...>
--dangerously-load-development-channels <servers...>
--agent-id <id>
--agent-name <name>
--team-name <name>
--agent-color <color>
--plan-mode-required
--parent-session-id <id>
--lead-verify-key <key>
--teammate-mode <mode>
--agent-type <type>
--sdk-url <url>
--runner-declares <names>
--hold-repository-while-parked
--session-began-as-copy <value>
--initialize-fields <names>
--teleport [session]
--cloud [description]
--forward-home-settings <boolean>
--remote [description]
--attach-serve <id>
--environment <id>
--pool <id>
--correlation-id <id>
--metadata <pair>
--ref <ref>
--on-branch <branch>
--remote-control [name]
--rc [name]
--remote-control-session-name-prefix <prefix>
-h, --help
-v, --version
"""
"""The declarations of both versions, in the client's order."""

COMMANDS = frozenset(
    {
        "agents", "attach", "auth", "auto-mode", "bg-pty-host", "bg-spare", "daemon", "design-login", "doctor",
        "edit-chrome-settings", "edit-hook", "edit-memory-settings", "edit-permission-rules", "edit-sandbox-settings",
        "edit-skill-overrides", "gateway", "import", "import-conversations", "install", "kill", "logs", "mcp", "open",
        "plugin", "plugins", "project", "purge", "remote-control", "respawn", "rm", "server", "setup-token", "ssh",
        "stop", "ultrareview", "update", "upgrade", "workspace-trust", "worktree-hook", "xaa",
    }
)  # fmt: skip
"""The first words that are no prompt but a command of the client."""


def _declared() -> dict[str, tuple[str, Takes]]:
    """By each name of an option, its last name and the values that it takes."""
    options = {}
    for line in _DECLARED.strip().split("\n"):
        words = line.replace(",", "").split(" ")
        value = words.pop() if words[-1][0] in "<[" else ""
        takes = Takes.MANY if "..." in value else {"<": Takes.ONE, "[": Takes.OPTIONAL}.get(value[:1], Takes.NONE)
        options.update(dict.fromkeys(words, (words[-1], takes)))
    return options


OPTIONS = _declared()
"""By each name of an option, its last name and the values that it takes."""


@dataclass(frozen=True, slots=True)
class Part:
    """An option with its values, or one word that belongs to none."""

    name: str
    """The option's last name; ``--`` for the end of options with all words behind it; empty for a word alone."""
    words: tuple[str, ...]
    """The words as they stand on the command line."""

    @property
    def known(self) -> bool:
        return self.name in OPTIONS

    @property
    def complete(self) -> bool:
        """Whether it has its value. The client refuses to start without."""
        return not self.known or OPTIONS[self.name][1] is not Takes.ONE or bool(self.values)

    @property
    def values(self) -> tuple[str, ...]:
        """The values of a known option."""
        option, *following = self.words
        if option.startswith("--"):
            _, separator, attached = option.partition("=")
            return (attached,) if separator else tuple(following)
        return (option[2:],) if option not in OPTIONS else tuple(following)


def parts(arguments: Sequence[str]) -> list[Part]:
    """Read the arguments of a client, as the client does. All of them are in the parts, in order."""
    return list(_parts(list(arguments)))


def _parts(ahead: list[str]) -> Iterator[Part]:
    ahead.reverse()
    while ahead:
        word = ahead.pop()
        if word == "--":
            yield Part("--", (word, *reversed(ahead)))
            return
        if not _is_option(word):
            yield Part("", (word,))
        elif word in OPTIONS:
            name, takes = OPTIONS[word]
            yield Part(name, (word, *_values(takes, ahead)))
        elif word.startswith("--"):
            name = word.partition("=")[0]
            yield Part(OPTIONS[name][0] if name in OPTIONS else name, (word,))
        elif word[:2] in OPTIONS:
            name, takes = OPTIONS[word[:2]]
            if takes is Takes.NONE:  # several flags in one word
                yield Part(name, (word[:2],))
                ahead.append(f"-{word[2:]}")
            else:
                yield Part(name, (word,))
        else:
            yield Part(word, (word,))


def _values(takes: Takes, ahead: list[str]) -> Iterator[str]:
    """Take the values of an option from the words ahead, the next of which is the last."""
    if takes is Takes.ONE and ahead:
        yield ahead.pop()
    while takes in (Takes.OPTIONAL, Takes.MANY) and ahead and not _is_option(ahead[-1]):
        yield ahead.pop()
        if takes is Takes.OPTIONAL:
            return


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-")


# -- programs ---------------------------------------------------------------------------------------------------------

INTERPRETERS = re.compile(r"(node|nodejs|bun|deno|python|sh|bash|dash|zsh|ksh)[0-9.]*")
"""The names of programs that run another one, which their command line names."""

_CODE = {"node": "-e", "nodejs": "-e", "bun": "-e", "python": "-c", "sh": "-c", "bash": "-c", "dash": "-c", "zsh": "-c",
         "ksh": "-c"}  # fmt: skip
"""The interpreters' option for code on the command line."""

_WITH_VALUE = {
    "node": ("-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions"),
    "bun": ("-r", "--preload", "--require", "--cwd", "--config", "-c"),
    "python": ("-W", "-X"),
}
"""The interpreters' options whose value is the next word."""


@dataclass(frozen=True, slots=True)
class Program:
    """The first words of a command line, which name the program."""

    length: int
    """The number of these words: an interpreter is followed by its options and a script."""
    script: str | None = None
    """The script that an interpreter runs."""
    is_client: bool = False
    """Whether the name of the program, or of the script, is Claude Code's."""


def program(argv: Sequence[str]) -> Program:
    """The program of the command line."""
    if not argv:
        return Program(0)
    found = INTERPRETERS.fullmatch(PurePosixPath(argv[0]).name)
    if found is None:
        return Program(1, is_client=claude.is_client_name(argv[0]))
    kind = {"nodejs": "node"}.get(found[1], found[1])
    at = 1
    while at < len(argv):
        word = argv[at]
        if word == _CODE.get(kind) or (word == "-m" and kind == "python"):
            length = at + (3 if kind.endswith("sh") else 2)  # a shell's code is followed by a name
            return Program(min(length, len(argv)))
        if word == "run" and kind in ("bun", "deno"):
            at += 1
        elif word in _WITH_VALUE.get(kind, ()):
            at += 2
        elif _is_option(word):
            at += 1
        else:
            return Program(at + 1, word, claude.is_client_name(word))
    return Program(len(argv))
