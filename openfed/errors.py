"""Every way to fail, and how the process ends when it does.

    OpenFedError              1   something failed
    |- UsageError             2   the command line, or a file beside the plan
    |- PlanError              2   the plan: holds every problem at once
    |- CertificateError       3   a certificate, key or request
    |- TransportError         4   the network, or a peer that cannot be reached
    |  `- WireError           4   a peer sent something that no honest peer sends
    |- TaskError              5   user code failed; keeps the user's traceback
    `- PolicyError            6   refused: the digest, the role or the site's rules forbid it

An error carries a code (`P07`), says where, what was expected, what was found, and what to do.
`fx explain CODE` prints the entry of `CODES`; a test walks the source and fails on a code that
has none.
"""

from dataclasses import dataclass


class OpenFedError(Exception):
    """The root. `code` is a key of `CODES`; `message` is one line for a person."""

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        assert code in CODES, f"error code {code} has no entry in CODES"
        super().__init__(f"{code}  {message}")
        self.code = code
        self.message = message


def exhausted(error: BaseException) -> str | None:
    """What the operating system refused, in words, if that is what an error of no code of ours
    tells: `S12`. It may be had when it is tried again. None: something else is wrong."""
    if isinstance(error, MemoryError):
        return f"no memory: {error}"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return "no thread could be started: the limit of memory or of processes is reached"
    return str(error) if isinstance(error, OSError) else None


class UsageError(OpenFedError):
    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a plan."""

    code: str
    where: str  # "plan/plan.yaml:17:5", or "-s strategy.lr" for an override
    path: str  # "strategy.fedadam.lr"
    message: str  # "expected a number > 0, got 'fast'"

    def __str__(self) -> str:
        return "  ".join(part for part in (self.where, self.code, self.path, self.message) if part)


class PlanError(OpenFedError):
    """A plan that cannot be run, with all its problems in file order."""

    exit_code = 2

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems[0].code, "\n".join(str(problem) for problem in problems))
        self.problems = problems

    def __str__(self) -> str:
        return self.message


class CertificateError(OpenFedError):
    exit_code = 3


class TransportError(OpenFedError):
    """The network failed. `permanent` faults are never retried."""

    exit_code = 4

    def __init__(self, code: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(code, message)
        self.permanent = permanent


class WireError(TransportError):
    """A peer sent what no honest peer sends; never retried."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, permanent=True)


class TaskError(OpenFedError):
    """User code failed, or answered what it may not. `traceback` holds the user's own lines."""

    exit_code = 5

    def __init__(self, code: str, message: str, *, traceback: str = "") -> None:
        super().__init__(code, message)
        self.traceback = traceback


class PolicyError(OpenFedError):
    exit_code = 6


@dataclass(frozen=True)
class Explanation:
    """What `fx explain CODE` prints."""

    title: str
    cause: str
    remedy: str


CODES: dict[str, Explanation] = {
    # -- U: usage, workspaces, runs ------------------------------------------------------------
    "U01": Explanation(
        "not a workspace",
        "The command works in a workspace: a folder that holds plan/plan.yaml.",
        "Go to one, or create one with `fx workspace create`.",
    ),
    "U02": Explanation(
        "unknown template",
        "No template of that name ships with openfed.",
        "`fx workspace templates` lists those that do.",
    ),
    "U03": Explanation(
        "the folder is taken",
        "A workspace is created only where nothing is yet, so that nothing is overwritten.",
        "Give another --prefix, or empty the folder yourself.",
    ),
    "U10": Explanation(
        "not a model file",
        "The file is not there, or is not a safetensors file of dtypes that openfed knows.",
        "Check the path; `fx model inspect FILE` reads what `fx run` writes below save/.",
    ),
    "U11": Explanation(
        "an extra is missing",
        "What was asked for needs a package that only an extra of openfed installs.",
        "Install the extra that the message names.",
    ),
    "U12": Explanation(
        "no initial model",
        "The task process that imports your code to make the initial model ended without one: it "
        "was killed, or something in it ended the process.",
        "Look at the lines that it printed last. Not enough memory is a common cause.",
    ),
    "U13": Explanation(
        "init is another model",
        "The file that the plan's `init` names has other entries, dtypes or shapes than the model "
        "that the plan builds.",
        "`fx model inspect FILE` lists its entries; change `init` or the model.",
    ),
    "U14": Explanation(
        "no such code",
        "There is no error of that code.",
        "Codes are a letter and two digits, as printed with every error.",
    ),
    "U16": Explanation(
        "not in the plan",
        "The plan has no collaborator of that name.",
        "Use one of the plan's names, or add it to `collaborators` and initialize the plan again.",
    ),
    "U17": Explanation(
        "no fixed port",
        "`aggregator.listen` has port 0, which means any free port: only `fx run`, which starts "
        "everyone, can tell the collaborators which.",
        'Give a port in plan.yaml, for example `aggregator: {listen: "0.0.0.0:50051"}`, then '
        "fx plan initialize.",
    ),
    "U18": Explanation(
        "the file is there already",
        "The command writes new files only.",
        "Give another name, or remove the file yourself.",
    ),
    "U19": Explanation(
        "the format has no such dtype",
        "The model has entries of a dtype that the format cannot hold.",
        "Write it as safetensors, or as torch.",
    ),
    "U20": Explanation(
        "the workspace is in use",
        "Another fx runs nodes of this workspace.",
        "Wait for it or stop it; `fx status` says how far it is. Copies of a workspace run side by "
        "side.",
    ),
    "U21": Explanation(
        "a node ended early",
        "One of the processes of the run ended, and starting it again would not help. The run's "
        "state is kept.",
        "Look at the last lines of its log; mend the cause; `fx run` resumes the run.",
    ),
    "U22": Explanation(
        "the suffix does not say the format",
        "A model is written in the format of its suffix: .safetensors, .pt or .pth (torch), .npz.",
        "Give one of those suffixes, or --to with a suffix that does not say otherwise.",
    ),
    "U30": Explanation(
        "not an archive that openfed reads",
        "The file is no zip archive, is cut off, or holds bytes that belong to none of its files. "
        "Only the plain form that fx writes is read, so that every program sees the same in it.",
        "Ask its sender for the file as fx wrote it, and compare its SHA-256 with theirs.",
    ),
    "U31": Explanation(
        "a name that is refused",
        "A name in the archive leads out of its folder, is not valid on every system, or is there "
        "twice as some systems see it (upper and lower case, spellings of one letter).",
        "Nothing was written. At the sender: rename the file, initialize the plan, export again.",
    ),
    "U32": Explanation(
        "not a plain file",
        "The archive holds a link, a folder, a device, something encrypted, or an entry with "
        "additions that fx never writes.",
        "Nothing was written. Ask its sender for the file as fx wrote it.",
    ),
    "U33": Explanation(
        "the archive is too large",
        "It has too many files, or they would become too large, or one of them grows so much that "
        "it is made to fill a disk.",
        "Nothing was written. Data do not belong into a workspace's src/: each site has its own.",
    ),
    "U34": Explanation(
        "the archive is damaged",
        "A file in it has another size or checksum than the archive says.",
        "Nothing was written. Transfer it again, and compare its SHA-256 with the sender's.",
    ),
    "U35": Explanation(
        "other files than expected",
        "The archive lacks a file, or holds one that fx would not have put in.",
        "Nothing was written. Ask its sender for the file as fx wrote it.",
    ),
    "U36": Explanation(
        "the archive holds no sound workspace",
        "Its plan, its plan.lock and its code do not belong together.",
        "Nothing was written. Ask its sender to run fx plan initialize and fx workspace export.",
    ),
    "U37": Explanation(
        "the workspace cannot be exported",
        "Every site must get exactly the plan and the code that were frozen, and nothing else.",
        "Do what the message says, then fx plan initialize, then export again.",
    ),
    "U40": Explanation(
        "nothing to resume",
        "`--resume` was given, and the latest run has ended, or belongs to another plan or code.",
        "Leave the flag out: a new run begins.",
    ),
    "U41": Explanation(
        "too few sites on this machine",
        "The plan's `collaborators` is `enrolled` with a minimum, and fx run would wait for ever "
        "with the sites that local.yaml has.",
        "Add sites to local.yaml, or lower the minimum in the plan.",
    ),
    "U50": Explanation(
        "not an OpenFL workspace",
        "The folder has no plan/plan.yaml, or one without the sections of OpenFL's plans.",
        "Give the folder that `fx workspace create` of OpenFL made: it holds plan/ and src/.",
    ),
    "U51": Explanation(
        "OpenFL's plan cannot be read",
        "A section, a setting or a line of plan/ is not what OpenFL 1.5 to 1.9 write there, or "
        "names a file of defaults that is not at hand.",
        "Correct the line that is named; write defaults that are missing into plan.yaml.",
    ),
    "U52": Explanation(
        "no PyTorch task runner",
        "Workspaces of OpenFL's task-runner API with PyTorch can be imported: not those of its "
        "workflow or interactive API, nor those for Keras, TensorFlow or XGBoost.",
        "Start from `fx workspace create`, and bring your model and data: docs/migration.md.",
    ),
    "U53": Explanation(
        "collaborators cannot be taken over",
        "plan/cols.yaml and plan/data.yaml name no collaborator, or one by a name that can be no "
        "file name and no part of a certificate.",
        "Name the collaborators in those files, with letters, digits, - and _.",
    ),
    "U54": Explanation(
        "openfed does not have this",
        "The plan asks for something that has no counterpart here: an aggregation function, tasks "
        "that differ between sites, secure aggregation. Left out, it would be another experiment.",
        "Change it in OpenFL's plan to something that is there, and import again.",
    ),
    "U55": Explanation(
        "code cannot be taken over",
        "A class that the plan names is not there, a file is not Python, or it imports a part of "
        "OpenFL that the adapter does not stand in for.",
        "Correct the line that is named, or write that part without OpenFL.",
    ),
    "U56": Explanation(
        "a file cannot be taken over",
        "A file in src is a link, or has the name of one that openfed writes.",
        "Put the file itself there, or rename it.",
    ),
    "U57": Explanation(
        "not a plan of openfed's",
        "Every key was translated, and the plan that they make does not pass `fx plan check`.",
        "The problems that follow say what is wrong; change it in OpenFL's plan.",
    ),
    "U60": Explanation(
        "whose workspace is this",
        "`fx doctor` looks at one side: the aggregator's, where cert/aggregator is, or a site's, "
        "where site.yaml or cert/NAME is. There is neither.",
        "Say it with -n NAME (or -n aggregator); or certify the node first.",
    ),
    "U61": Explanation(
        "a version that nobody has tried",
        "Python, or a package that openfed uses, is older or newer than those it is tested with.",
        "Install openfed into a fresh environment: pip install openfed-fx.",
    ),
    "U62": Explanation(
        "no data there",
        "What site.yaml or local.yaml says of the site's data looks like a path, and there is "
        "nothing, or nothing that may be read. Paths are relative to the workspace.",
        "Correct the path, or the permissions of the user who starts the node.",
    ),
    "U63": Explanation(
        "the certificate ends soon",
        "Less than a third of its life is left, and it has not been renewed.",
        "`fx run` renews it for a trial; elsewhere nodes do while they run and `fx pki serve` is "
        "up at the authority, or its operator certifies the request again.",
    ),
    "U64": Explanation(
        "proxies of the environment are not used",
        "Variables such as https_proxy say that programs are to reach the network by a proxy. "
        "openfed does what `proxy:` in site.yaml says, and else dials the aggregator itself.",
        "Nothing, if the line on the network says PASS; else name the proxy in site.yaml.",
    ),
    "U65": Explanation(
        "clocks disagree",
        "This machine's clock and the times of files differ by more than half a minute. "
        "Certificates are valid by the clock.",
        "Set the clock (NTP), here or on the machine that serves the files.",
    ),
    "U66": Explanation(
        "not a local disk",
        "runs/ holds the journal and the updates of a run. In memory they end with the machine; on "
        "a file server SQLite is slow, and locks may not hold.",
        "Put the workspace on a local disk.",
    ),
    "U67": Explanation(
        "locks do not hold",
        "This file system lets two processes lock the same file, so that two aggregators could "
        "write one journal.",
        "Put the workspace on a local disk.",
    ),
    "U68": Explanation(
        "not enough space",
        "The disk must hold the model in use, the next one, and what sites send.",
        "Free space, or put the workspace on a larger disk.",
    ),
    "U80": Explanation(
        "the plan is in use",
        "A node of this workspace runs, or waits for its aggregator, under the plan and the code "
        "that the archive would replace; or another import goes on.",
        "Nothing was changed. Stop the node with Ctrl-C, or wait for the end of the run; then "
        "import the archive again.",
    ),
    "U81": Explanation(
        "the import would lose something",
        "An import replaces plan/, src/ and requirements.txt as a whole, and something there was "
        "made or changed in this workspace: it is not what plan.lock says.",
        "Nothing was changed. Move the file that the message names elsewhere and import again, or "
        "import into a new folder with --prefix.",
    ),
    "U82": Explanation(
        "an archive of another federation",
        "The workspace holds keys, settings and approvals of one federation; the archive's plan is "
        "of another.",
        "Nothing was changed. Import the archive into a new folder with --prefix.",
    ),
    "U83": Explanation(
        "an import is not finished",
        "A new plan is being put into this workspace, or was when the command was stopped: plan "
        "and code may not belong together.",
        "Import the archive again: the import is finished first. Nothing that is the site's own "
        "is touched by it.",
    ),
    "U85": Explanation(
        "the sandbox lacks a wall",
        "The sandbox works, but this machine does not have everything that it can be made of.",
        "For Landlock: a kernel from 5.13 on that has it switched on (lsm=landlock). For control "
        "groups: start the site as a service of its own with Delegate=yes, or in containers.",
    ),
    "U88": Explanation(
        "compose.yaml is another's",
        "There is a compose.yaml in this workspace that does not begin as openfed's does: somebody "
        "else has written it, or removed its first line.",
        "Nothing was changed. Rename the file, write openfed's, and put your own changes into "
        "compose.override.yaml.",
    ),
    "U89": Explanation(
        "the services could not read the keys",
        "Services have no right to read what is another user's, and keys are their owner's alone.",
        "Give the workspace to the user that the services are to run as, or name its owner with "
        "--user UID:GID; then write the file again.",
    ),
    # -- P: the plan ---------------------------------------------------------------------------
    "P01": Explanation(
        "unknown key",
        "A key that the plan does not have, or an argument that a class of yours does not take.",
        "Correct the spelling: the message lists what is known there. Nothing is ignored.",
    ),
    "P02": Explanation(
        "not YAML",
        "The file cannot be read as YAML: an unclosed bracket, a tab, a wrong indentation, or "
        "nothing in it at all.",
        "Look at the line the message names, and at the one before it.",
    ),
    "P03": Explanation(
        "key given twice",
        "A mapping has the same key twice; most readers would keep one of them silently.",
        "Remove one of the two.",
    ),
    "P04": Explanation(
        "YAML feature refused",
        "Plans are read by people: tags, anchors, aliases, merge keys, several documents and "
        "control characters are not read, and size and depth have limits.",
        "Write the values out.",
    ),
    "P05": Explanation(
        "ambiguous value",
        "YAML readers disagree about values such as no, on, 010, 1:30, 1_000 or 2024-01-01.",
        "Write true or false, a plain decimal number, or put the text in quotes.",
    ),
    "P06": Explanation(
        "something is missing",
        "A key that has no default is not there, or an argument that your class requires.",
        "Add it; the message shows how.",
    ),
    "P07": Explanation(
        "wrong type",
        "A value is of another kind than the plan expects there: text for a number, one value "
        "for a list, a number without its unit.",
        "Write what the message says was expected.",
    ),
    "P08": Explanation(
        "out of range",
        "A number or a list is smaller or larger than what makes sense, or is not finite.",
        "Choose a value in the range that the message names.",
    ),
    "P09": Explanation(
        "unknown name",
        "A choice names something that does not ship with this version.",
        "Choose one of the names in the message; your own code is named as src.module:Name.",
    ),
    "P10": Explanation(
        "code not found",
        "src.module:Name does not lead to a class or function in a file below src/. The file "
        "was read, not imported.",
        "Correct the name, or the file. Names are those at the top of the file.",
    ),
    "P11": Explanation(
        "arguments do not fit",
        "A class or function of yours does not take the arguments that openfed gives by "
        "position: a loader gets (source, ...), a loss (output, batch, ...).",
        "Add them to the definition, in that order, before the settings.",
    ),
    "P12": Explanation(
        "unknown metric",
        "A metric neither ships nor is a function of yours, or best or stop look at one that "
        "the plan does not compute.",
        "Choose one of the names in the message, or add it to metrics.",
    ),
    "P13": Explanation(
        "address refused",
        "An address cannot be listened on or dialled: no port, a port out of range, a name with "
        "spaces, 0.0.0.0 where others must connect to.",
        "listen takes host:port; advertise takes the names and IPs that collaborators dial.",
    ),
    "P14": Explanation(
        "name refused",
        "Names of federations, plans and sites become file names and parts of certificates.",
        "Use letters, digits, - and _, up to 63; every site its own, also without regard to case.",
    ),
    "P15": Explanation(
        "settings contradict each other",
        "Each value is right by itself, and together they cannot be: epochs and steps, a quorum "
        "without a deadline, a best metric without validation.",
        "Change one of them; the message says which.",
    ),
    "P16": Explanation(
        "file cannot be used",
        "A file that the plan needs is not there, cannot be read, or is outside the workspace; "
        "or plans extend each other in a circle.",
        "Check the path. Paths are relative to the plan (extends) or to the workspace (init).",
    ),
    "P17": Explanation(
        "override refused",
        "A -s option is not of the form key.path=value.",
        "Write it as in -s task_runner.optimizer.lr=0.01; quote it where the shell needs it.",
    ),
    "P18": Explanation(
        "not in this release",
        "The plan asks for something that openfed is going to have and does not have yet.",
        "Remove the key, or use what the message offers instead.",
    ),
    "P19": Explanation(
        "plan.lock cannot be used",
        "plan/plan.lock is missing, was changed by hand, or was written by another version.",
        "Write it: fx plan initialize.",
    ),
    "P20": Explanation(
        "code differs from plan.lock",
        "A file below src/, or requirements.txt, is not the one that the plan was frozen with.",
        "Restore the file, or freeze the plan again with fx plan initialize: it is then another "
        "plan, which every site has to approve.",
    ),
    "P21": Explanation(
        "sites do not match the plan",
        "local.yaml has to say where the data of every collaborator of the plan is, and of no "
        "other.",
        "Give sites: one entry for each collaborator.",
    ),
    "P22": Explanation(
        "codecs that do not go together",
        "The stages of a chain work on one another's output: first those that choose or turn "
        "numbers (topk, randomk, rotate), then at most one that makes codes of them (fp16, bf16, "
        "quantize, lloyd, grid, ternary, kmeans), then those that pack bytes (zstd, entropy).",
        "Change the chain as the message says.",
    ),
    "P23": Explanation(
        "a stage that saves nothing",
        "A part of `compression_pipeline` would make nothing smaller under this plan: it repeats "
        "what another has done, has nothing to work on, or costs as much as it saves.",
        "Remove it, or change what the message names.",
    ),
    "P24": Explanation(
        "too few answers for this strategy",
        "A robust rule withstands f hostile updates only among so many: 2f + 1 for trimmed_mean, "
        "2f + 3 for krum and multi_krum, 4f + 3 for bulyan. What counts is with how few answers a "
        "round can end: the sites wanted, or cohort.quorum.",
        "Lower f, raise cohort.quorum, or ask more sites. collaborators: {enrolled: {minimum: N}} "
        "says how many there are at least.",
    ),
    "P25": Explanation(
        "the method does not cover this",
        "The strategy's formula holds for some local optimisers, runners and scopes only; with "
        "others it would be another method under the same name.",
        "Change what the message names, or choose another strategy; docs/methods.md has the table.",
    ),
    "P26": Explanation(
        "the data contract cannot be read",
        "A key of the plan's data contract is unknown, or its value is not of the form expected.",
        "Correct what the message names; docs/data.md has the form.",
    ),
    "P27": Explanation(
        "the data contract excludes itself",
        "Demands of the data contract cannot hold together: a range that ends before it begins, a "
        "target that is no column, a shape for a table.",
        "Change one of them.",
    ),
    "P30": Explanation(
        "plan.lock is outdated",
        "plan.yaml says something else than what plan.lock was frozen from; an outdated lock is "
        "never signed.",
        "Freeze it again with fx plan freeze, then sign it. What was given with -s belongs in "
        "plan.yaml.",
    ),
    "P31": Explanation(
        "nothing to compare",
        "`fx plan diff` compares frozen plans: workspaces, plan.lock files, or digests of plans "
        "that a site here has approved.",
        "Say which two, as in fx plan diff OLD NEW; without NEW it is this workspace.",
    ),
    "P32": Explanation(
        "which site",
        "This workspace does not say which site it belongs to: site.yaml has no name, and cert/ "
        "has the keys of no site or of several.",
        "Say it with -n NAME.",
    ),
    "P40": Explanation(
        "not one filter",
        "Each item of `filters` in site.yaml is one filter: clip_norm, noise or drop.",
        "Write a list with one of them in each item: their order counts.",
    ),
    "P41": Explanation(
        "filters in an order that defeats one",
        "`clip_norm` after `noise` in site.yaml would cut the noise along with the update.",
        "Put clip_norm first.",
    ),
    "P44": Explanation(
        "a password that others can read",
        "site.yaml holds the password of a proxy, and users of this machine other than its owner "
        "may read the file.",
        "chmod 600 site.yaml. If others may have read it, change the password.",
    ),
    "P42": Explanation(
        "there is another site.yaml",
        "`fx collaborator create` found a site.yaml with another name or other data, and never "
        "overwrites what a person may have written.",
        "Edit the file, or remove it and run the command again.",
    ),
    # -- C: certificates -----------------------------------------------------------------------
    "C01": Explanation(
        "not a certificate, key or request",
        "A file does not hold what its name says, in PEM format.",
        "Restore the file, or remove it and run the command that made it again.",
    ),
    "C02": Explanation(
        "kind of key refused",
        "Certificates here use ECDSA keys on P-256 or P-384; identities use Ed25519. Weaker and"
        " foreign kinds are refused, at issue and at start.",
        "Make the request again with `fx`; it creates a key of the right kind.",
    ),
    "C03": Explanation(
        "no proof of possession",
        "A certificate request is not signed by the keys that it names: it was altered or put "
        "together from parts.",
        "Make the request again on the node that holds the key.",
    ),
    "C04": Explanation(
        "name refused",
        "A certificate is asked for a name, host or role that cannot be in one.",
        "Correct the name in the plan (`federation`, `collaborators`, `aggregator.advertise`).",
    ),
    "C05": Explanation(
        "certificate expired",
        "A leaf is past its end. Leaves live for 30 days.",
        "`fx run` issues a new one by itself; elsewhere ask the operator of the authority. If "
        "the certificate is fresh, check this machine's clock.",
    ),
    "C06": Explanation(
        "certificate not valid yet",
        "A leaf begins later than this machine's clock says.",
        "Set the clock (NTP). A leaf begins 10 minutes before it is issued.",
    ),
    "C07": Explanation(
        "wrong authority",
        "A certificate was issued by another authority than the one in cert/authority.pem.",
        "Get the certificate and authority.pem from the same federation.",
    ),
    "C08": Explanation(
        "certificate of another name",
        "The certificate names another node than the one that is being started.",
        "Check the name after -n, and that the folders below cert/ were not mixed up.",
    ),
    "C09": Explanation(
        "wrong role",
        "A certificate speaks for a role that may not do this: only a collaborator's may call "
        "the aggregator, only the aggregator's may answer.",
        "Use the certificate that was issued to this node.",
    ),
    "C10": Explanation(
        "key and certificate differ",
        "The private key is not the one that the certificate was issued for.",
        "Restore node.key, or remove node.pem and chain.pem and have a certificate issued again.",
    ),
    "C11": Explanation(
        "key open to others",
        "A key or its folder can be read or written by others, or is a link.",
        "chmod 700 the folder and 600 the key. If others may have read it, replace the key.",
    ),
    "C12": Explanation(
        "file missing",
        "A key or certificate is not where it belongs, or cannot be read.",
        "For a trial on one machine `fx run` creates what is missing. Else: `fx workspace certify` "
        "makes the authority, `fx aggregator certify` and `fx collaborator generate-cert-request` "
        "a node's keys. If authority.key was taken away on purpose, bring it back to issue.",
    ),
    "C13": Explanation(
        "key already there",
        "A command would have replaced a key. Keys are never overwritten.",
        "If the old key is really to go, move it away first.",
    ),
    "C14": Explanation(
        "authority expired",
        "The federation's authority is past its five years; nothing that it issued is valid.",
        "Begin a new federation: move cert/ away and have every node certified again.",
    ),
    "C15": Explanation(
        "passphrase missing or wrong",
        "The authority's key is encrypted and the passphrase given does not open it.",
        "Give the passphrase that was chosen when the authority was created: with "
        "--passphrase-file FILE, or at the question that a terminal shows.",
    ),
    "C16": Explanation(
        "another federation",
        "A certificate, or the authority below cert/, belongs to another federation than the "
        "plan's.",
        "Check `federation` in the plan, or use the cert/ folder of this federation.",
    ),
    "C17": Explanation(
        "not one of our certificates",
        "A certificate lacks the name openfed://federation/role/name.",
        "Use certificates that openfed issued.",
    ),
    "C18": Explanation(
        "no longer admitted",
        "The operator has revoked this node's certificate.",
        "Ask the operator of the federation.",
    ),
    "C19": Explanation(
        "issuance profile refused",
        "A profile in certs/ has a key, lifetime or usage that is not allowed.",
        "Compare it with certs/standard.yaml.",
    ),
    "C20": Explanation(
        "the aggregator's certificate is out of date",
        "The aggregator shows a certificate that is expired, or not valid yet by this machine's"
        " clock.",
        "Ask its operator to restart it with a new certificate; check both clocks.",
    ),
    "C21": Explanation(
        "the aggregator's certificate is of another authority",
        "The server at this address was certified by another authority than the one in "
        "cert/authority.pem.",
        "Check the address, and that authority.pem is that of this federation. A proxy that opens "
        "TLS must pass this address on unopened.",
    ),
    "C22": Explanation(
        "the aggregator's certificate does not name this address",
        "The server's certificate names other hosts than the one that was dialled.",
        "Dial a name in the certificate, or add this one to `aggregator.advertise` and start it"
        " again.",
    ),
    "C23": Explanation(
        "the server is not the aggregator",
        "The server shows a certificate of another role: somebody else of this federation, or "
        "of another, listens at this address.",
        "Check the address. If it is right, tell the operator: a node poses as the aggregator.",
    ),
    "C24": Explanation(
        "the aggregator refuses this certificate",
        "The server ended the TLS handshake because of the certificate that this node shows.",
        "Check that the aggregator is of the same federation, and its clock.",
    ),
    "C30": Explanation(
        "the name is another's",
        "A certificate is asked for a name that is enrolled with another identity key, under "
        "another role, or on another machine.",
        "If it is really the same node with new keys, revoke the name first (`fx pki revoke -n "
        "NAME`), then certify the new request. If not, choose another name.",
    ),
    "C31": Explanation(
        "revoked",
        "The identity key of the request, or the certificate that was shown, has been revoked.",
        "A revoked name comes back with new keys only: on the node move cert/NAME away, make a "
        "new request, and have it certified.",
    ),
    "C32": Explanation(
        "not on the authority's record",
        "The authority has enrolled nobody under this name and role, or did not issue this "
        "certificate to it.",
        "`fx pki list` shows who is enrolled.",
    ),
    "C33": Explanation(
        "enrolment ended",
        "The enrolment has an end, and it is past.",
        "The operator certifies the node's request again, with a later --until.",
    ),
    "C34": Explanation(
        "the authority is elsewhere",
        "This folder is a node's: it was made from a workspace archive, or trusts an authority "
        "whose key is not here. It never makes an authority of its own.",
        "Issue certificates where the authority is; for a trial use a workspace of its own "
        "(`fx workspace create`).",
    ),
    "C35": Explanation(
        "the authority has no passphrase",
        "A passphrase was given for an authority that is here already, with a key that is not "
        "encrypted (a trial's, perhaps).",
        "Go on without a passphrase, or move cert/ away and begin anew with one.",
    ),
    "C36": Explanation(
        "the authority's record is damaged",
        "A line of cert/authority/record.jsonl is not one that fx wrote. Nothing is issued, or "
        "someone who was revoked could come back.",
        "Restore the file from a backup.",
    ),
    "C37": Explanation(
        "roster refused",
        "cert/roster.json is damaged, of another federation, or not signed by the authority that "
        "is trusted here.",
        "Get it again from the authority: it is in the package of every certificate.",
    ),
    "C38": Explanation(
        "an authority that nobody vouches for",
        "A certificate came with an authority to trust that is not the one trusted so far, and "
        "that this one has not certified.",
        "Ask the operator for the fingerprint. If the federation was really begun anew, move "
        "cert/ away and enrol again; else somebody is trying to get in between.",
    ),
    "C39": Explanation(
        "roll-over not possible now",
        "A roll-over of the authority is begun, or is not, or nodes still hold certificates of "
        "the old root.",
        "`fx pki list` shows who must be renewed; --finish --force leaves them out.",
    ),
    "C40": Explanation(
        "not a request for this authority",
        "A request package is damaged, of another federation, or of another role than a "
        "collaborator's.",
        "Make it again on the node: `fx collaborator generate-cert-request -n NAME`.",
    ),
    "C41": Explanation(
        "not confirmed",
        "A person must compare the fingerprints before this is done, and either nobody is at a "
        "terminal to be asked, or the answer was no.",
        "Compare them and answer yes, or give --silent.",
    ),
    "C42": Explanation(
        "no passphrase in the file",
        "The file given as --passphrase-file is empty, or its first line is.",
        "Write the passphrase into its first line; keep the file readable by you alone.",
    ),
    "C50": Explanation(
        "not a whole token",
        "The text is no token of openfed, or lost or changed a character on its way.",
        "Copy the token again, from openfed1. to its end. Line breaks in it do no harm.",
    ),
    "C51": Explanation(
        "the token was used",
        "A token enrols one node once. It was used with other keys than those of this node.",
        "If you did not enrol with it yourself, tell the operator at once: someone else has. "
        "Otherwise ask for a new token (`fx pki token`).",
    ),
    "C52": Explanation(
        "the token has expired",
        "Tokens are good for a day, or for as long as the operator said.",
        "Ask the operator for a new one (`fx pki token`).",
    ),
    "C53": Explanation(
        "the token is for somebody else",
        "A token is bound to one federation, role and name, and was used for another.",
        "Use the token that was made for this node, in the workspace of its federation.",
    ),
    "C54": Explanation(
        "the token does not prove the request",
        "The token's content, or the request, was changed after it was made.",
        "Copy the token again as it was printed; if that does not help ask for a new one.",
    ),
    "C55": Explanation(
        "the token was withdrawn",
        "The operator withdrew the token, or made a newer one for the same name.",
        "Use the newest token, or ask the operator for one.",
    ),
    "C56": Explanation(
        "unknown token",
        "This authority has no record of such a token: it was made by another one, or its record "
        "was removed.",
        "Ask the operator for a new token (`fx pki token`).",
    ),
    "C57": Explanation(
        "the authority is offline",
        "Nobody answers at the authority's desk, so nothing can be renewed now.",
        "Start it on the authority's machine: `fx pki serve`. Nodes try again by themselves.",
    ),
    "C58": Explanation(
        "the authority is not the pinned one",
        "The server shows other roots than the one whose fingerprint was given with --ca.",
        "Compare the fingerprint with what `fx pki fingerprint` prints at the authority. If it is "
        "right, somebody else answers at this address: nothing was sent to it.",
    ),
    "C59": Explanation(
        "the server is not the authority",
        "What answers at the token's address is not the authority's listener: its certificate is "
        "of another authority, or of another node of the federation.",
        "Check the address that the token was made with. Nothing was sent.",
    ),
    "C60": Explanation(
        "the authority does not answer",
        "Enrolment is open only while `fx pki serve` runs at the authority and a token is "
        "outstanding. Proxies of the environment are not used.",
        "Ask the operator whether it runs, and check that the token's address can be reached.",
    ),
    "C61": Explanation(
        "a request that no node sends",
        "What came to the authority is not of the form that openfed's nodes use.",
        "Use the same release of openfed at both ends.",
    ),
    "C62": Explanation(
        "the record of tokens is damaged",
        "cert/authority/tokens.jsonl holds a line that fx did not write.",
        "Restore it, or move it away: every token that was not used is then worthless.",
    ),
    "C63": Explanation(
        "no such token",
        "There is no unused token for this name that could be withdrawn.",
        "Check the name. A node that has enrolled is shut out with `fx pki revoke`.",
    ),
    "C64": Explanation(
        "an answer that no authority gives",
        "The authority's answer cannot be read, or is too long, or it could not do its work.",
        "Look at what `fx pki serve` says at the authority; then do the same again.",
    ),
    "C65": Explanation(
        "not a user of the desk",
        "The authority's desk serves processes of its own user, of root, and of the user that it "
        "was started for.",
        "Run the aggregator as that user, or start `fx pki serve` as the aggregator's.",
    ),
    "C66": Explanation(
        "the authority is served already",
        "Another `fx pki serve` answers for this authority, or at the same socket.",
        "Stop it first.",
    ),
    "C67": Explanation(
        "not a fingerprint",
        "An authority's fingerprint is sha256: and 64 hexadecimal digits.",
        "Copy it whole, as `fx pki token` or `fx pki fingerprint` printed it.",
    ),
    # -- T: transport --------------------------------------------------------------------------
    "T01": Explanation(
        "gRPC was imported too early",
        "Something imported grpc before openfed set what makes it speak TLS 1.3 only.",
        "Import openfed.transport before anything that imports grpc, or set "
        "GRPC_SSL_CIPHER_SUITES and GRPC_ENABLE_FORK_SUPPORT as the message says.",
    ),
    "T02": Explanation(
        "port in use",
        "Another program listens on the aggregator's port.",
        "Stop it, or choose another port: -s aggregator.listen=0.0.0.0:50052 (port 0 takes any "
        "free one).",
    ),
    "T03": Explanation(
        "cannot listen",
        "The operating system does not let the aggregator listen on this address.",
        "`aggregator.listen` is an address of this machine (0.0.0.0 for all), with a port above"
        " 1023 unless root.",
    ),
    "T04": Explanation(
        "host name does not resolve",
        "DNS knows no address for the aggregator's name.",
        "Check the name, and DNS on this machine.",
    ),
    "T05": Explanation(
        "nothing listens there",
        "The host answers, but no program listens on the port.",
        "Start the aggregator, or check the port. Collaborators keep trying until their deadline.",
    ),
    "T06": Explanation(
        "no answer",
        "The address did not answer in time, or cannot be reached.",
        "Check the address, the firewall and the VPN: one outbound TCP port is all a "
        "collaborator needs, or an HTTP proxy that CONNECTs to it: `proxy:` in site.yaml.",
    ),
    "T07": Explanation(
        "the server does not speak TLS",
        "What answers at this address is not a TLS server. There is no plaintext mode.",
        "Check the address and port; remove any proxy that ends TLS on the way.",
    ),
    "T08": Explanation(
        "TLS 1.3 refused",
        "The other side does not speak TLS 1.3, the only version here.",
        "Check for a proxy or middlebox on the way that ends TLS.",
    ),
    "T09": Explanation(
        "connection lost",
        "The connection ended in the middle of a call, or the aggregator is going down.",
        "Nothing is lost: the call is made again. If it repeats, look at the aggregator's log.",
    ),
    "T10": Explanation(
        "not an openfed aggregator",
        "The server speaks TLS with a good certificate, but not openfed's protocol.",
        "Check the port, and that both sides have versions that belong together.",
    ),
    "T11": Explanation(
        "the aggregator failed",
        "An error inside the aggregator that openfed did not foresee.",
        "Its log has the details; please report them.",
    ),
    "T12": Explanation(
        "no answer in time",
        "The connection is open, but a call was not answered in its time.",
        "Look at the load and the log of the aggregator.",
    ),
    "T13": Explanation(
        "address refused",
        "An address is not host:port.",
        "Write it as host:port, or [IPv6]:port.",
    ),
    "T14": Explanation(
        "transfer under way",
        "Another transfer of the same bytes by the same collaborator has not ended yet.",
        "It is tried again. If it repeats, two processes run under one name: stop one.",
    ),
    "T15": Explanation(
        "the proxy does not answer",
        "The proxy that `proxy:` in site.yaml names cannot be reached, or hangs up.",
        "Check its host and port with your network's administrator. It is tried again.",
    ),
    "T16": Explanation(
        "the proxy refuses the address",
        "The site's proxy answers, and does not connect to the address that is dialled.",
        "Ask your network's administrator to let it CONNECT to that host and port.",
    ),
    "T17": Explanation(
        "the proxy wants to know its user",
        "The site's proxy asks for a user and a password: there are none in site.yaml, others than "
        "it knows, or it asks in a way that openfed does not speak.",
        "Write `proxy: http://user:password@host:port` in site.yaml (chmod 600 site.yaml), or have "
        "this machine let through without; of the ways to ask, only Basic is spoken.",
    ),
    "T18": Explanation(
        "not an HTTP proxy",
        "What answers at the host and port of `proxy:` in site.yaml does not answer as an HTTP "
        "proxy does. Proxies that speak TLS themselves or SOCKS are not supported.",
        "Check the port with your network's administrator, or write `proxy: none`.",
    ),
    "T19": Explanation(
        "no more connections",
        "The aggregator has as many connections as it takes: half of the files that its process "
        "may open (`ulimit -n`), 8192 at most. Whoever is connected goes on; others are turned "
        "away without a word and try again.",
        "If so many sites are to take part, raise the limit of open files. If not, somebody holds "
        "connections: see who (`ss -tn`) and let a firewall shut them out.",
    ),
    "T20": Explanation(
        "too few open files",
        "The aggregator holds a connection and an update of every site, each an open file: more "
        "than this system lets a process of this user have.",
        "Raise the hard limit: `ulimit -Hn`, LimitNOFILE= of a systemd unit, or --ulimit nofile of "
        "a container.",
    ),
    # -- W: frames and messages that no honest peer sends --------------------------------------
    "W01": Explanation(
        "not a frame",
        "The bytes do not begin as an openfed frame does, or end before their header says.",
        "Check that the file is one that openfed wrote and that it was copied whole.",
    ),
    "W02": Explanation(
        "frame header refused",
        "The header of a frame is not what the format allows: an unknown dtype, a name twice, "
        "names out of order, a size that does not fit, a number that is not finite.",
        "The sender is broken or hostile: look at its version and its log.",
    ),
    "W03": Explanation(
        "frame too large",
        "A frame declares more bytes than the plan's model allows.",
        "Nothing was allocated. Check that both sides run the same plan.",
    ),
    "W10": Explanation(
        "message refused",
        "A message is not one of this protocol, or has a field that is too long, out of range "
        "or unknown.",
        "The sender is broken or hostile: look at its version and its log.",
    ),
    "W11": Explanation(
        "protocol version refused",
        "The peer speaks another major version of the protocol.",
        "Install versions of openfed with the same major protocol on both sides.",
    ),
    "W12": Explanation(
        "block refused",
        "A block of a transfer is empty or too large.",
        "The sender is broken or hostile: look at its version and its log.",
    ),
    "W13": Explanation(
        "transfer incomplete",
        "An upload ended without its end mark.",
        "The sender is broken or hostile: look at its version and its log.",
    ),
    "W14": Explanation(
        "packet of another model",
        "What arrived holds differences from a model that is not the one asked for, or not there.",
        "Nothing of it was used. If it repeats, restart the node that sent it: its store is out of"
        " step with the run.",
    ),
    "W15": Explanation(
        "too slow",
        "An upload, or a message, came so slowly that the aggregator no longer waited for it.",
        "It is tried again, and goes on where it was. If it repeats, look at the line; if the line "
        "is good, the sender is broken or hostile.",
    ),
    "W16": Explanation(
        "too many calls at once",
        "One collaborator has more calls open than any honest one has.",
        "It is tried again. If it repeats, see whether several processes run under its name.",
    ),
    "W04": Explanation(
        "transfer of the wrong length",
        "A transfer sent more or fewer bytes than it announced, or did not go on where it should.",
        "Nothing was kept of it beyond what was announced; the sender tries again. If it repeats,"
        " look at its version.",
    ),
    "W05": Explanation(
        "bytes with another digest",
        "The bytes that arrived are not those that were announced, or were never uploaded.",
        "They were dropped and are sent again. If it repeats, a disk or memory at the sender is "
        "faulty.",
    ),
    "W20": Explanation(
        "damaged chunk",
        "The bytes of a compressed chunk cannot be what the plan's codecs gave: a scale, a symbol "
        "or a position is out of range, or a compressed part is broken.",
        "Nothing of it was used. The sender is broken or hostile: look at its version and its log.",
    ),
    "W21": Explanation(
        "chunk of the wrong length",
        "A compressed chunk has more or fewer bytes than its elements need.",
        "Nothing of it was used. The sender is broken or hostile: look at its version and its log.",
    ),
    "W22": Explanation(
        "codec not of the plan",
        "What a peer sent names a codec, a version or settings that the plan does not have for it.",
        "Check that both sides run the same plan and versions of openfed that fit.",
    ),
    # -- K: tasks, the user's code -------------------------------------------------------------
    "K01": Explanation(
        "user code cannot be imported",
        "A module or attribute that the plan names (`src.model:Net`) is missing, or raises while "
        "it is imported.",
        "The last lines shown are your own. Check the name in plan.yaml, and that the packages it "
        "needs are in requirements.txt and installed at the site.",
    ),
    "K02": Explanation(
        "user code raised",
        "The model, the loader, the loss or a loop of yours raised an exception.",
        "The lines shown are from your own files, the last one is where it happened.",
    ),
    "K03": Explanation(
        "user code called exit",
        "The code left with sys.exit() or SystemExit instead of returning or raising.",
        "Raise an exception that says what is wrong.",
    ),
    "K04": Explanation(
        "nothing to train on",
        "The data loader gave no sample for training, or lacks classes that the estimator needs "
        "at every site.",
        "Check what this site's data in local.yaml points to.",
    ),
    "K05": Explanation(
        "not a data loader",
        "The loader lacks `train(seed=...)`, or its batches are neither (inputs, targets) nor a "
        "dict; or the plan has a data contract, and the loader neither `table()` nor `samples()`.",
        "See the template torch_digits for a loader of 20 lines, and docs/data.md for contracts.",
    ),
    "K06": Explanation(
        "too much output",
        "The task printed more than `output_limit` bytes. The rest was dropped.",
        "Print less; or write to a file of the site's own.",
    ),
    "K07": Explanation(
        "an entry that cannot travel",
        "The model has an entry that is no plain tensor: complex or quantised numbers, or a "
        "Python object as extra state.",
        "Keep it out of `state_dict()` (`persistent=False`), or give it a plain dtype.",
    ),
    "K08": Explanation(
        "a setting that the runner does not know",
        "A name or a setting of the task runner is not one of those that ship, and not a "
        "`module:attribute`.",
        "The message lists what is known.",
    ),
    "K09": Explanation(
        "against the plan's scope",
        "The answer holds an entry that the plan's `scope` keeps local (it was not sent), or "
        "keeps as local one that the plan shares.",
        "Return the entry where the plan says, or change `scope` in the plan.",
    ),
    "K10": Explanation(
        "agent and task process misunderstand each other",
        "The bytes on their socket are not a message, or not one that belongs there.",
        "User code may have written to a descriptor that is not its own; look at the site's log.",
    ),
    "K11": Explanation(
        "a pattern that matches nothing",
        "A pattern of the plan (`scope`, `freeze`, `param_groups`, `except`) has no effect on this "
        "model: it matches no entry, or a pattern before it takes them all. What it should keep "
        "local would be shared, what it should keep exact would be rounded.",
        "The message lists the model's entries: correct the pattern, or remove it.",
    ),
    "K12": Explanation(
        "user code returned something else",
        "A function of yours that the plan names (a metric, a loss, a training function) did not "
        "return what openfed expects of it.",
        "The message has what it returned and what is expected: change its return line.",
    ),
    "K13": Explanation(
        "a metric that cannot be computed",
        "The plan's `metrics` asks for a metric that these outputs and targets do not have, or "
        "that the validation function does not return.",
        "Remove the metric from `metrics` in the plan, or give it what the message says it needs.",
    ),
    "K20": Explanation(
        "task failed",
        "A collaborator reported a failure without a known code.",
        "Look at the collaborator's log.",
    ),
    "K21": Explanation(
        "other entries than the model's",
        "A reply lacks an entry of the model, or has one that the model does not.",
        "Entries are fixed when the plan is initialised: do not add or remove layers while "
        "training.",
    ),
    "K22": Explanation(
        "another dtype or shape",
        "An entry of a reply has another dtype or shape than the model's.",
        "Shapes are fixed when the plan is initialised: do not change them while training.",
    ),
    "K23": Explanation(
        "not a finite number",
        "Training gave NaN or an infinity; such an update never reaches the model.",
        "Lower the learning rate, set clip_grad_norm, check the data for missing or huge values.",
    ),
    "K24": Explanation(
        "no usable sample count",
        "A reply does not say how many samples it is from, or says none were trained on.",
        "Check that the data loader yields batches at this site.",
    ),
    "K25": Explanation(
        "an undeclared number",
        "A reply holds a number that is not finite, or that the plan does not declare; or it lacks "
        "one that the plan's strategy needs.",
        "Name the metric under `metrics` in the plan; return finite sums.",
    ),
    "K26": Explanation(
        "the task process ended",
        "The process that runs the user's code exited or was killed in the middle of a task.",
        "Look at the collaborator's log; signal 9 often means that memory ran out.",
    ),
    "K27": Explanation(
        "no task process",
        "No task process connected to the agent.",
        "Look at the collaborator's log: the process may fail while it starts.",
    ),
    "K28": Explanation(
        "unreadable result",
        "What the task process wrote is not what it should have written.",
        "Update openfed at the site; check that nothing else writes in the exchange folder.",
    ),
    "K30": Explanation(
        "longer than the site allows",
        "A task took longer than `limits.seconds` in the site's site.yaml, and was stopped.",
        "The site raises its limit, or the plan asks for less work in a task.",
    ),
    "K31": Explanation(
        "fewer samples than the site allows",
        "A training used fewer samples than `limits.samples` in the site's site.yaml: its update "
        "would say too much about each of them, so nothing was sent.",
        "The site provides more data, lowers its limit, or is left out of the plan.",
    ),
    "K32": Explanation(
        "a reply that is not made twice",
        "The site adds noise to its updates or counts the bytes that leave it, and its reply to "
        "this ask has been judged before. Made again, it would tell more than the site allows.",
        "Nothing is to be done for this ask; the site takes part in the next one.",
    ),
    "K33": Explanation(
        "longer than the plan allows",
        "A task computed for longer than the plan's timeouts.task, and was stopped.",
        "Look at the site's log: did it wait for data? Or raise timeouts.task in the plan.",
    ),
    "K40": Explanation(
        "no such split",
        "A data set cannot be split over the sites as asked: the partitioner or a setting is "
        "unknown, there are too few samples or keys, or a minimum cannot be had.",
        "Change what the message names.",
    ),
    "K41": Explanation(
        "a data file that is not read",
        "A file or folder of the site's data is not there, may not be read, is a pipe or a device, "
        "or is larger than the reader's limit, or would become so in memory.",
        "Check the path and its permissions; give the reader a larger `limit` if memory allows.",
    ),
    "K42": Explanation(
        "a data file that is damaged",
        "The file is not of the format that the reader reads, is cut off, or says of itself what "
        "is not so. Names and values in it are not shown: this message may leave the site.",
        "Look at the place that the message names; write the file anew.",
    ),
    "K43": Explanation(
        "a value of another kind",
        "A value is not of the kind that its column is read as. It is not shown: this message may "
        "leave the site.",
        "Look at the place that the message names; correct the value, or the column's kind.",
    ),
    "K44": Explanation(
        "values are missing",
        "Cells are empty, or say NA, where the column may not miss any. Integers and booleans "
        "never may.",
        "Fill or remove those lines, or say `missing: true` of a column of numbers or texts.",
    ),
    "K45": Explanation(
        "columns are missing",
        "A column or an array that is to be read is not in the file, or is there twice.",
        "A CSV file's first line names its columns. Check the spelling, and the delimiter.",
    ),
    "K46": Explanation(
        "a package is missing",
        "Parquet files need pyarrow, PNG images Pillow; openfed does not install them.",
        "Install it as the message says, in the environment of the task process; for containers, "
        "put it into requirements.txt.",
    ),
    "K47": Explanation(
        "images of another form",
        "An image has another size or mode than the reader was given, a file is no PNG, or the "
        "folder has entries that are no class of the plan.",
        "Scale and convert images beforehand; one folder per class, with .png files in it.",
    ),
    "K48": Explanation(
        "parts that do not belong together",
        "Images and labels, or the users of a LEAF file and their samples, are not as many.",
        "Take the files of one data set, and of one part of it.",
    ),
    "K49": Explanation(
        "the data contract does not hold",
        "The site's data are not what the plan's data contract demands. Values, and how many are "
        "wrong, are not shown: this message may leave the site.",
        "Correct the data, or agree on another contract in the plan.",
    ),
    "K50": Explanation(
        "not the table that the method needs",
        "A method on sums takes a table of numbers with the columns that the plan says, none of "
        "them missing or infinite, and one label a row where it needs labels.",
        "Look at the site's data at the place that the message names; fill or drop missing values "
        "in the same way at every site.",
    ),
    "K51": Explanation(
        "a label or a category is out of range",
        "Classes, groups and levels are whole numbers from 0 on, as many as the plan says; times "
        "of a survival curve are whole numbers, events 0 or 1.",
        "Number them in the same way at every site, or raise the count in the plan.",
    ),
    "K52": Explanation(
        "too little data in all",
        "The sites' rows together are not enough for the method: no row, no row of some class, or "
        "nothing that varies.",
        "Look at what each site's `data` names; let more sites take part.",
    ),
    "K53": Explanation(
        "the data do not determine one answer",
        "Columns depend on each other, or a plane separates the classes, and there is no penalty "
        "that would choose among the answers.",
        "Give a penalty (`alpha` or `penalty` above 0), or leave out the columns that follow from "
        "others.",
    ),
    "K54": Explanation(
        "the sums do not belong together",
        "What two sites sent differs in its entries or their shapes, or nothing was sent, so that "
        "it cannot be added.",
        "Use the same release of openfed at all sites; if they do, please report it.",
    ),
    "K55": Explanation(
        "sums at a state that is none",
        "A site was asked for its sums at a state that the plan's method cannot have, or whose "
        "sums would be larger than either end takes.",
        "Lower what the flow counts (features, classes, bins, depth); if it is none of these, "
        "please report it.",
    ),
    # -- R: refused by policy ------------------------------------------------------------------
    "R01": Explanation(
        "another plan",
        "The peer was started with another plan than the aggregator: their digests differ.",
        "Compare `fx plan show` on both sides; give every site the same workspace archive and "
        "approve it again.",
    ),
    "R02": Explanation(
        "not a collaborator of this plan",
        "The certificate is valid, but its name is not among the plan's collaborators, or its "
        "role is another.",
        "Add the name to `collaborators` in the plan, or start the node that the certificate "
        "belongs to.",
    ),
    "R03": Explanation(
        "another federation",
        "The certificate or the message belongs to another federation.",
        "Use the certificates that this federation's authority issued.",
    ),
    "R04": Explanation(
        "another run",
        "The message belongs to a run that this aggregator is not running.",
        "Start the collaborator again: it learns the run's id when it joins.",
    ),
    "R05": Explanation(
        "blob not assigned",
        "A collaborator asked for bytes that none of its open assignments names.",
        "Start the collaborator again. If it repeats, its software has been changed.",
    ),
    "R06": Explanation(
        "never asked",
        "A collaborator answered an ask that it was not given.",
        "Start the collaborator again. If it repeats, its software has been changed.",
    ),
    "R07": Explanation(
        "not in this ask's cohort",
        "A collaborator answered an ask that was put to others.",
        "Start the collaborator again. If it repeats, its software has been changed.",
    ),
    "R08": Explanation(
        "a changed retry",
        "A collaborator that has been counted sent another reply to the same ask.",
        "The first one counts. Two processes may be running under one name: stop one.",
    ),
    "R09": Explanation(
        "a reply after a failure",
        "A collaborator reported a failure and later sent a reply to the same ask.",
        "The failure counts. Two processes may be running under one name: stop one.",
    ),
    "R10": Explanation(
        "another protocol",
        "The peer speaks another major version of the protocol.",
        "Install the same release of openfed on both sides.",
    ),
    "R11": Explanation(
        "late, kept for the next round",
        "A reply came after its round had gone on; the plan has cohort.late: next_round.",
        "Nothing is to be done. If it happens often, raise cohort.deadline or cohort.grace.",
    ),
    "R12": Explanation(
        "not in the approved plan",
        "The aggregator asked for a task that the plan approved at this site does not have.",
        "Nothing was run. Ask the operator of the aggregator what it runs; compare plan digests.",
    ),
    "R13": Explanation(
        "not the plan's initial model",
        "The file of the initial model has another digest than the plan was frozen with.",
        "Run `fx plan initialize` again: every site then approves the new plan.",
    ),
    "R20": Explanation(
        "the plan's signature does not verify",
        "plan/plan.sig is damaged, or was changed after the author signed the plan.",
        "Get the workspace from its author again; the author signs it with fx plan sign.",
    ),
    "R21": Explanation(
        "the signature of another plan",
        "plan/plan.sig is the author's signature of another plan than the one in plan.lock.",
        "The author signs this plan with fx plan sign and hands the workspace out again.",
    ),
    "R22": Explanation(
        "an approval that does not count",
        "A site's approval is damaged, of another plan or site, or not signed with that site's "
        "identity key.",
        "Approve the plan again at the site: fx collaborator approve.",
    ),
    "R23": Explanation(
        "the plan is not approved",
        "The site has not approved this plan: nothing of it runs there before it has.",
        "Read what changed, and approve it: fx collaborator approve.",
    ),
    "R24": Explanation(
        "another plan than the one consented to",
        "The digest that was given is not that of the plan in this workspace.",
        "Compare it with the one that the author sent you; get the workspace of that plan.",
    ),
    "R25": Explanation(
        "nobody to ask",
        "Approving asks a person, and there is no terminal to ask at.",
        "Give the digest of the plan that you have reviewed, or --silent on a machine of your own.",
    ),
    "R27": Explanation(
        "a site that is on no roster here",
        "The aggregator checks each approval with the identity key in cert/roster.json.",
        "Bring cert/roster.json from the authority; it writes one with each certificate.",
    ),
    "R26": Explanation(
        "not approved",
        "The person who was asked did not approve the plan. Nothing was written.",
        "Ask the author of the plan for the change that you want.",
    ),
    "R30": Explanation(
        "more rounds than the site allows",
        "The plan, or the aggregator, asks for more rounds than `limits.rounds` in site.yaml.",
        "Ask the plan's author for fewer rounds, or raise the limit in site.yaml.",
    ),
    "R31": Explanation(
        "a metric that may not leave the site",
        "The plan asks for a metric that `limits.metrics` in site.yaml does not list.",
        "Add it to the list, or ask the plan's author to do without it.",
    ),
    "R32": Explanation(
        "more bytes than the site allows",
        "The updates of the plan's rounds are larger than `limits.bytes_out` in site.yaml.",
        "Raise the limit, or ask the plan's author for fewer rounds or for codecs in "
        "compression_pipeline.",
    ),
    "R33": Explanation(
        "noise together with error feedback",
        "The plan's uplink keeps what its codecs lose and sends it later, noise included: the "
        "site's noise would be undone.",
        "Ask the plan's author for feedback: false, or remove the noise from site.yaml.",
    ),
    "R34": Explanation(
        "the site has sent all that it may",
        "With the next reply, more bytes than `limits.bytes_out` in site.yaml would have left in "
        "this run. The reply was not sent, and the site left the run.",
        "Raise the limit in site.yaml and start the collaborator again.",
    ),
    "R35": Explanation(
        "a filter that matches nothing",
        "A pattern of a `drop` in site.yaml matches no entry of the plan's model: what it was to "
        "keep at the site would leave it.",
        "Correct the pattern; the message lists entries of the model.",
    ),
    "R36": Explanation(
        "less isolation than the site requires",
        "`isolation` in site.yaml (of a trial: in local.yaml) asks for a level that this machine "
        "or this command cannot give; the message says why. Nothing was started.",
        "For sandbox: install bubblewrap (Debian, Ubuntu, Fedora: the package bubblewrap) and let "
        "your user make user namespaces; fx doctor says whether it works. For container: start the "
        "site in containers (fx workspace compose; a trial: fx run --launcher docker).",
    ),
    "R37": Explanation(
        "a sandbox would show what it must hide",
        "The site's data, or Python itself, lies around or inside what only the site's agent may "
        "see: cert/, runs/, logs/, save/, approved/ and the site's settings.",
        "Put the data into a folder of its own, such as data/ in the workspace or one outside of "
        "it, and name that folder.",
    ),
    "R38": Explanation(
        "a filter on exact sums",
        "The plan's flow adds up sums of all sites, and a filter of site.yaml would change this "
        "site's: the answer would be wrong, and nobody could see it.",
        "Remove the filter for this run, or take no part in it.",
    ),
    # -- L: containers and images ----------------------------------------------------------------
    "L01": Explanation(
        "no Docker engine",
        "The Docker engine does not answer, or this user may not speak to it.",
        "Start it, or join the group `docker`; DOCKER_HOST names an engine that is elsewhere. "
        "`docker info` says whether it answers.",
    ),
    "L02": Explanation(
        "the image is not there",
        "The engine has no image of this name. The names are made from the version of openfed, and "
        "for a task from requirements.txt and the plan's runner: a change of one needs a build.",
        "`fx workspace dockerize` builds both images; without a network: `docker load -i` the file "
        "that its --save wrote.",
    ),
    "L03": Explanation(
        "the package for Docker is missing",
        "Speaking to a Docker engine needs its Python package, which only an extra installs.",
        "pip install 'openfed-fx[docker]'.",
    ),
    "L04": Explanation(
        "the base image cannot be had",
        "The engine does not have the image that --base names, and could not pull it.",
        "Check its name; without a network: `docker load` it first.",
    ),
    "L05": Explanation(
        "the base image has no usable Python",
        "openfed needs Python 3.11 or newer, called python3, with the modules venv and ensurepip.",
        "Give another --base. On Debian and Ubuntu the package python3-venv has the modules.",
    ),
    "L06": Explanation(
        "an image was not built",
        "A step of the build failed; the last lines of its log stand behind the message.",
        "Mostly a package of requirements.txt that is not in the wheelhouse or at the index, or "
        "that is not made for the Python of the base.",
    ),
    "L07": Explanation(
        "not a wheelhouse for this openfed",
        "An image is built with exactly the version of openfed that builds it, and the folder has "
        "no wheel of that version.",
        "Fill it with pip wheel as the message says, on a machine of the same kind and Python.",
    ),
    # -- S: state: journal, spool, runs --------------------------------------------------------
    "S10": Explanation(
        "the journal cannot be used",
        "The run's SQLite file is damaged, or the disk refused to write.",
        "Free space, check the disk; begin a new run with --new if the file is damaged.",
    ),
    "S11": Explanation(
        "the run is taken",
        "Another process runs this run.",
        "Stop the other process, or use another workspace.",
    ),
    "S12": Explanation(
        "the operating system refused",
        "A file could not be written or read, a socket not used, memory not had: disk full, no "
        "permission, too many open files.",
        "The message has the system's own words and the path; mend that and start again.",
    ),
    "S13": Explanation(
        "interrupted",
        "The aggregator was told to stop before the run had ended.",
        "Start it again: the run resumes where it was.",
    ),
    "S14": Explanation(
        "no such failpoint",
        "OPENFED_FAILPOINTS, which makes a node fail for tests, is set and cannot be understood.",
        "Unset it; a node that trains has no use for it. The points are in openfed/failpoints.py.",
    ),
    # -- J: the ledger -------------------------------------------------------------------------
    "J01": Explanation(
        "an entry of the ledger was changed",
        "An entry's hash is not that of its content, or the line is not one that openfed writes: "
        "somebody, or a disk, changed it after it was written.",
        "Get the ledger again from the aggregator (its journal has it too) and verify that. If the "
        "journal itself is changed, the run proves nothing any more: find out who could write it.",
    ),
    "J02": Explanation(
        "entries of the ledger are missing, twice, out of order or of another history",
        "Entries are numbered from 1 and each holds the hash of the one before it; here they do "
        "not follow each other.",
        "Get the whole ledger again from the aggregator. If it is the same there, entries were "
        "taken away, added or moved: compare it with what the sites have kept (--against).",
    ),
    "J03": Explanation(
        "a signature is not the aggregator's",
        "The aggregator signs each entry with its identity key; this signature is not one of that "
        "key over this entry, this run and this plan.",
        "See that the key is the aggregator's: cert/roster.json names it, or --key. If it is, the "
        "entry was not written by this aggregator.",
    ),
    "J04": Explanation(
        "the ledger contradicts itself",
        "What an entry tells cannot follow from those before it, such as an ask that accepts a "
        "reply that was never counted, or a round without the one before.",
        "No aggregator of openfed writes such a ledger: ask its operator what was changed.",
    ),
    "J05": Explanation(
        "a site has seen another history",
        "A site keeps what the aggregator said of its ledger: numbers and hashes, signed. What it "
        "has kept is not in this ledger, so the aggregator told two histories, or rewrote or cut "
        "one: an old copy of the run's folder that was put back does that too.",
        "Trust neither until the operator has explained it. What the site has kept is signed by "
        "the aggregator: keep both files.",
    ),
    "J06": Explanation(
        "the journal says something else than its ledger",
        "Asks, replies, rounds and the end of the run are in tables of the journal and, in the "
        "same transactions, in its ledger. Here the two differ: a table was edited.",
        "Begin a new run with --new; what the ledger says is signed, what the table says is not.",
    ),
    "J07": Explanation(
        "what the aggregator says of its ledger is refused",
        "The aggregator's identity key is not the one that this site knows, a head of its ledger "
        "or a receipt is not signed by it, or the receipt is of another reply. The site stops, "
        "since it could not prove later that its update was counted.",
        "Compare the fingerprints of the key with the aggregator's operator. After the aggregator "
        "got a new identity key, bring the roster from the authority again.",
    ),
    "J08": Explanation(
        "there is no ledger to verify",
        "There is no run here, or the file is no ledger, or what is compared is of another run.",
        "Name the file that the aggregator wrote (save/ledger.jsonl), or go to its workspace.",
    ),
    "J09": Explanation(
        "the ledger was begun with another identity key",
        "All entries of a run's ledger are signed with one key; cert/aggregator/identity.key is "
        "another one now.",
        "Put the key that began the run back, or begin a new run with --new.",
    ),
    # -- F: flows and runs ----------------------------------------------------------------------
    "F01": Explanation(
        "quorum not reached",
        "Fewer collaborators answered an ask than the plan's quorum.",
        "The reasons stand behind it, by collaborator. Mend them and run again, or lower "
        "cohort.quorum.",
    ),
    "F02": Explanation(
        "the replay diverged",
        "After a restart the flow asked for something else than it had before.",
        "Begin a new run with --new. A flow must take time and randomness from its handle only.",
    ),
    "F03": Explanation(
        "a fault of openfed",
        "The flow ended with an error that nobody foresaw.",
        "Please report it with the aggregator's log.",
    ),
    "F04": Explanation(
        "the new model is not finite",
        "The sites' updates were finite, but their weighted sum, or the strategy's step, was not.",
        "Lower the learning rates; look at the sizes of the updates and of n.",
    ),
    "F05": Explanation(
        "the run's time is over",
        "The plan's stop.after passed before the first round was finished.",
        "Raise stop.after, or cohort.deadline if sites were still at work.",
    ),
    "F06": Explanation(
        "the method is not done",
        "The plan's rounds are over, and its flow needs more of them: what is saved is a state on "
        "the way, not the answer.",
        "Raise rounds: a method that is done ends the run by itself. `docs/methods.md` says how "
        "many each method takes.",
    ),
    "F10": Explanation(
        "too few updates for this rule",
        "A robust rule withstands f hostile updates only among so many: 2f + 1 for the trimmed "
        "mean, 2f + 3 for Krum and Multi-Krum, 4f + 3 for Bulyan.",
        "Lower the strategy's f, or raise cohort.quorum so that no round counts with fewer.",
    ),
    "F11": Explanation(
        "updates too large to compare",
        "Squares of the updates' elements are beyond what a float64 can hold (about 1e308), so "
        "that lengths and distances are not numbers.",
        "Lower the local learning rate, or find the site whose update is that large.",
    ),
    "F12": Explanation(
        "a number that the strategy weighs with is missing",
        "FedNova needs the local steps of every update, q-FedAvg the loss before training. One "
        "was not reported, or is negative or not finite.",
        "Let the runner report it, or choose another strategy.",
    ),
}
