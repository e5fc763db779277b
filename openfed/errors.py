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
    "U40": Explanation(
        "nothing to resume",
        "`--resume` was given, and the latest run has ended, or belongs to another plan or code.",
        "Leave the flag out: a new run begins.",
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
        "`fx run` creates what is missing. If authority.key was taken away on purpose, bring it"
        " back to issue certificates.",
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
        "Give the passphrase that was chosen when the authority was created.",
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
        "Check the address, and that authority.pem is that of this federation.",
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
        "collaborator needs.",
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
        "dict.",
        "See the template torch_digits for a loader of 20 lines.",
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
        "A reply holds a number that is not finite, or that the plan does not declare.",
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
        "A file could not be written or read, or a socket not used: disk full, no permission, too "
        "many open files.",
        "The message has the system's own words and the path; mend that and start again.",
    ),
    "S13": Explanation(
        "interrupted",
        "The aggregator was told to stop before the run had ended.",
        "Start it again: the run resumes where it was.",
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
}
