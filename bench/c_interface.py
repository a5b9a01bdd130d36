"""include/vidsparse/vidsparse.h in ctypes: what the benchmarks need of it."""

import ctypes as c

DTYPES = {"f32": 1, "f16": 2, "bf16": 3}


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int32), ("rank", c.c_int32),
                ("shape", c.c_int64 * 4), ("strides", c.c_int64 * 4)]

    @classmethod
    def dense(cls, address, dtype, *sides):
        strides = [1] * len(sides)
        for i in range(len(sides) - 2, -1, -1):
            strides[i] = strides[i + 1] * sides[i + 1]
        return cls(address, DTYPES[dtype], len(sides), tuple(sides), tuple(strides))


class Mask(c.Structure):
    _fields_ = [("words", c.c_void_p)] + [
        (name, c.c_int64) for name in
        ("batch", "heads", "query_tiles", "key_tiles", "head_stride", "batch_stride")]


class Segment(c.Structure):
    _fields_ = [("kind", c.c_int32), ("reserved", c.c_int32)] + [
        (name, c.c_int64) for name in ("length", "t", "h", "w")]


class Sequence(c.Structure):
    _fields_ = [("segments", c.POINTER(Segment)), ("segment_count", c.c_int64),
                ("packed_tiles", c.c_int64), ("packed_slots", c.c_int64)]


class Sized(c.Structure):
    """A struct that begins with its size."""

    def __init__(self, **fields):
        super().__init__(struct_size=c.sizeof(type(self)), **fields)


class Problem(Sized):
    _fields_ = [("struct_size", c.c_size_t), ("query", Sequence), ("key", c.POINTER(Sequence)),
                ("tile", c.c_int64 * 3), ("batch", c.c_int64), ("heads_q", c.c_int64),
                ("heads_kv", c.c_int64), ("head_dim", c.c_int64), ("dtype", c.c_int32),
                ("reserved", c.c_int32)]


class PlanOptions(Sized):
    _fields_ = [("struct_size", c.c_size_t), ("device", c.c_int32 * 2), ("backend", c.c_char_p),
                ("parallel_for", c.c_void_p), ("parallel_context", c.c_void_p),
                ("concurrency", c.c_int32), ("reserved", c.c_int32)]


class PlanInfo(Sized):
    _fields_ = ([("struct_size", c.c_size_t), ("backend", c.c_char_p),
                 ("backend_detail", c.c_char_p)] +
                [(side + name, c.c_int64) for name in ("tokens", "tiles", "plain_tiles",
                                                       "length_columns")
                 for side in ("query_", "key_")] +
                [("query_padding_waste", c.c_double), ("key_padding_waste", c.c_double),
                 ("mask", Mask), ("mask_row_words", c.c_int64), ("mask_words", c.c_int64)])


class Selection(Sized):
    _fields_ = [("struct_size", c.c_size_t), ("rule", c.c_int32), ("prefix_mode", c.c_int32),
                ("sparsity", c.c_double), ("top_k", c.c_int64), ("always", Mask)]


class Gate(c.Structure):
    _fields_ = [("kind", c.c_int32), ("value", c.c_float), ("tensor", Tensor)]


class Scale(c.Structure):
    _fields_ = [("given", c.c_int32), ("reserved", c.c_int32), ("value", c.c_double)]


def _args(name, *fields):
    """An argument struct; a field is a tensor unless it says otherwise."""
    kinds = {"lengths": Tensor * 2, "selection": c.POINTER(Selection), "scale": Scale,
             "mask": Mask, "gate": Gate}
    return type(name, (Sized,), {"_fields_": [("struct_size", c.c_size_t)] + [
        (field, kinds.get(field, Tensor)) for field in fields]})


PoolArgs = _args("PoolArgs", "q", "k", "v", "lengths", "qc", "kc", "vc")
SelectArgs = _args("SelectArgs", "qc", "kc", "vc", "lengths", "selection", "scale", "mask", "oc",
                   "coarse_max", "coarse_sum")
AttendArgs = _args("AttendArgs", "q", "k", "v", "lengths", "scale", "mask", "gate", "oc", "out",
                   "lse")
ForwardArgs = _args("ForwardArgs", "q", "k", "v", "lengths", "selection", "scale", "gate", "out",
                    "lse", "mask", "oc", "coarse_max", "coarse_sum")
BackwardArgs = _args("BackwardArgs", "q", "k", "v", "lengths", "scale", "mask", "gate", "out",
                     "lse", "oc", "coarse_max", "coarse_sum", "dout", "dlse", "dq", "dk", "dv",
                     "dgate")


class Library:
    """The loaded library with the threads it is lent."""

    def __init__(self, path, threads_path):
        self._c = c.CDLL(path)
        self._c.vidsparse_last_error.restype = c.c_char_p
        self._c.vidsparse_version.restype = c.c_char_p
        self.version = self._c.vidsparse_version().decode()
        self._threads = c.CDLL(threads_path)
        self._threads.bench_threads_create.restype = c.c_void_p
        self._threads.bench_threads_create.argtypes = [c.c_int]
        self._arenas = {}

    def call(self, name, *arguments):
        if getattr(self._c, name)(*arguments) != 0:
            raise RuntimeError(f"{name}: {self._c.vidsparse_last_error().decode()}")

    def plan(self, grid, heads, head_dim, dtype, threads, backend):
        if threads not in self._arenas:
            self._arenas[threads] = self._threads.bench_threads_create(threads)
        return Plan(self, grid, heads, head_dim, dtype, threads, backend,
                    c.cast(self._threads.bench_parallel_for, c.c_void_p), self._arenas[threads])


class Plan:
    """One video, batch 1, 4x4x4 tiles."""

    def __init__(self, library, grid, heads, head_dim, dtype, threads, backend, run, arena):
        self._library = library
        segment = Segment(kind=1, t=grid[0], h=grid[1], w=grid[2])
        problem = Problem(query=Sequence(c.pointer(segment), 1, 0, 0), tile=(4, 4, 4), batch=1,
                          heads_q=heads, head_dim=head_dim, dtype=DTYPES[dtype])
        options = PlanOptions(backend=backend.encode() if backend else None, parallel_for=run,
                              parallel_context=arena, concurrency=threads)
        self._handle = c.c_void_p()
        library.call("vidsparse_plan_create", c.byref(problem), c.byref(options),
                     c.byref(self._handle))
        self.info = PlanInfo()
        library.call("vidsparse_plan_get_info", self._handle, c.byref(self.info))

    @property
    def detail(self):
        return self.info.backend_detail.decode() or self.info.backend.decode()

    def workspace_bytes(self, stage, args):
        size = c.c_size_t()
        self._library.call(f"vidsparse_{stage}_workspace", self._handle, c.byref(args),
                           c.byref(size))
        return size.value

    def run(self, stage, args, workspace, size):
        self._library.call(f"vidsparse_{stage}", self._handle, c.byref(args),
                           c.c_void_p(workspace), c.c_size_t(size), None)
