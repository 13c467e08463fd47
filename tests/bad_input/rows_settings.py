"""Settings that cannot be meant, of every job: refused before anything is looked at."""

from bad_input.cases import table
from helpers.desk import FAILED, WRONG_SETTINGS

LONG = "run=" + "n" * 300


def bench_folder(desk):
    (desk.folder / "runs/bench").mkdir(parents=True)


COLLECT = [
    ("model=opt-99", "model=opt-99", "choose one of "),
    ("data=nope", "data=nope", "local, paper, sample, tokens"),
    ("ray=nope", "ray=nope", "cluster, local"),
    ("data.pth=x", "data.pth", "did you mean data.path?"),
    ("+data.pth=x", "data.pth", "did you mean data.path?"),
    ("modle=opt-mini", "modle", "did you mean model?"),
    ("run=a(1)", "run=a(1)", "quotes"),
    ("run=", "run=''", "expected a folder"),
    ("run=s3://", "s3://", "s3://BUCKET/PREFIX"),
    ("run=foo://x/y", "foo://x/y", "s3://BUCKET/PREFIX"),
    ("run=memory:///x", "memory:///x", "expected a folder"),
    ("plan=perhaps", "plan=perhaps", "Print what it would take"),
    ("repair=yess", "repair=yess", "Compute committed shards again"),
    ("model=local", "model.path is not set", "a hub id"),
    ("model.path=nope", "model.path=nope does not exist", "config.json"),
    ("model.path=", "model.path is not set", "a hub id"),
    ("model.dtype=float64", "model.dtype=float64", "bfloat16"),
    ("model.sizes=7", "model.sizes=7", "What config.json says"),
    ("collect.shard_sequences=abc", "collect.shard_sequences=abc", "a number from 1"),
    ("collect.shard_sequences=0", "collect.shard_sequences=0", "a number from 1"),
    ("collect.shard_sequences=2.5", "collect.shard_sequences=2.5", "auto: by the plan"),
    ("collect.batch_sequences=-3", "collect.batch_sequences=-3", "a number from 1"),
    ("collect.verify=maybe", "collect.verify=maybe", "compare its checksum"),
    ("data=tokens", "data.path", ".npy"),
    ("data.path=x", "data.path=x", "data=local"),
    ("data.kind=web", "data.kind=web", "sample, local, tokens, hub"),
    ("data.packing=tight", "data.packing=tight", "concat, document"),
    ("data.bos=sometimes", "data.bos=sometimes", "auto, true, false"),
    ("data.separator=", "data.separator=''", "auto, a token or its id"),
    ("data.sequence_length=1", "data.sequence_length=1", "2 or more"),
    ("data.max_tokens=abc", "data.max_tokens=abc", "Take whole sequences"),
    ("data.max_tokens=0", "data.max_tokens=0", "1 or more"),
    ("data.max_tokens=1e400", "data.max_tokens=1e400", "Take whole sequences"),
    ("data.shares={a:1}", "data.shares", "set that as well"),
    (["data.shares={a:-1}", "data.max_tokens=64"], "'a': -1", "0 or more"),
    (["data.shares={a:0}", "data.max_tokens=64"], "'a': 0", "not all 0"),
    (["data.shares={a:inf}", "data.max_tokens=64"], "inf", "0 or more"),
    ("data.sources=[{domain:a}]", "data.sources", "is for data=paper"),
    (["data=paper", "data.sources=[{domain:a}]"], "domain='a'", "path are needed"),
    (["data=paper", "data.sources=[]"], "data.sources is empty", "data=paper"),
    (["data=paper", "data.max_tokens=null"], "data=paper", "set data.max_tokens"),
    ("ray.workers=0", "ray.workers=0", "a number from 1"),
    ("ray.workers=most", "ray.workers=most", "auto or max or a number"),
    ("ray.gpus_per_worker=-1", "ray.gpus_per_worker=-1", "a number from 0"),
    ("ray.cpus_per_worker=0", "ray.cpus_per_worker=0", "a number from 1"),
    ("ray.start_timeout=0", "ray.start_timeout=0", "above 0"),
    ("ray.flops=-1", "ray.flops=-1", "above 0"),
    ("ray.address=foo", "ray.address=foo", "HOST:PORT"),
    ("justaword", "justaword", "KEY=VALUE"),
]

REDUCE = [
    ("", "run= is missing", "run folder"),
    ("run=nope", "nope does not exist", "folder of a run"),
    ("run=.", "holds no run", "jobs/collect.py"),
    ("run={tokens}", "tokens.npy is a file", "folder of a run"),
    ("run=", "run=''", "expected a run folder"),
    ("runs=[A,A/]", "runs=['A', 'A/']", "different runs"),
    ("reduce.cover_share=2", "cover_share=2", "at most 1"),
    ("reduce.cover_share=0", "cover_share=0", "more than 0"),
    ("reduce.cover_share=nan", "cover_share=nan", "more than 0"),
    ("reduce.cover_share=0.12345678901", "cover_share=0.12345678901", "nine decimals"),
    ("reduce.detect_rate=often", "reduce.detect_rate=often", "occurrences"),
    ("reduce.ngrams=[0]", "ngrams=[0]", "at least 1"),
    ("reduce.ngrams=[]", "ngrams=[]", "at least 1"),
    ("reduce.ngrams=[2,2]", "ngrams=[2, 2]", "different lengths"),
    ("reduce.ngrams=[x]", "reduce.ngrams=[x]", "Lengths"),
    ("reduce.max_cover={1: 0}", "max_cover", "n=1"),
    ("reduce.cover_limit=3", "cover_limit=3", "null for no limit"),
    ("reduce.min_count=0", "min_count=0", "at least 1"),
    ("reduce.min_count=" + "9" * 20, "reduce.min_count=999", "at most 42949"),
    ("reduce.top_triggers=-1", "top_triggers=-1", "at least 0"),
    ("reduce.positional_mi=-1", "positional_mi=-1", "from 0 to 1"),
    ("reduce.min_crossings=1", "min_crossings=1", "at least 2"),
    ("reduce.min_domain_sequences=0", "min_domain_sequences=0", "at least 1"),
    ("reduce.near=0.7", "near=0.7", "below 0.5"),
    ("reduce.range_share=0", "range_share=0", "above 0"),
    ("reduce.smooth_least=0.5", "smooth_least=0.5", "at most smooth_most"),
    ("reduce.vocabulary_kurtosis=-1", "vocabulary_kurtosis=-1", "at least 0"),
    ("reduce.few_occurrences=-1", "few_occurrences=-1", "at least 0"),
    ("reduce.covershare=1", "reduce.covershare", "did you mean reduce.cover_share?"),
    ("match_tokens=5", "match_tokens=5", "runs=[DIR,DIR2]"),
    ("partial=some", "partial=some", "shards are missing"),
]

REPORT = [
    ("", "runs is not set", "runs=[DIR,DIR2]"),
    ("runs=[.]", "holds no run", "jobs/collect.py"),
    ("runs=DIR", "runs=DIR", "[DIR,DIR2]"),
    ("runs=[nope]", "nope does not exist", "folder of a run"),
    (["runs=[x]", "port=-1"], "port=-1", "a number from 0 to 65535"),
    (["runs=[x]", "port=65536"], "port=65536", "a number from 0 to 65535"),
    (["runs=[x]", "port=http"], "port=http", "Port of serve=true"),
    (["runs=[x]", "report.neurons=some"], "report.neurons=some", "classified, all or none"),
    (["runs=[x]", "report.sample=-1"], "report.sample=-1", "0 or more"),
    (["runs=[x]", "report.contexts=101"], "report.contexts=101", "0 to 100"),
    (["runs=[x]", "report.context_tokens=1001"], "context_tokens=1001", "0 to 1000"),
    (["runs=[x]", "report.max_bytes=-1"], "report.max_bytes=-1", "0 or more"),
    (["runs=[x]", "report.neuron=1"], "report.neuron", "did you mean report.neurons?"),
]

CHECK = [
    ("", "run", "run folder"),
    ("run=", "run=''", "a run folder"),
    ("run=nope", "nope does not exist", "folder of a run"),
    ("run=.", "holds no run", "jobs/collect.py"),
    (["run=.", "repair=perhaps"], "repair=perhaps", "Put right"),
]

BENCH = [
    ("bench.parts=[forwards]", "bench.parts=['forwards']", "some of forward, pack"),
    ("bench.parts=[]", "bench.parts=[]", "some of forward, pack"),
    ("bench.rounds=0", "bench.rounds=0", "a number from 1"),
    ("bench.device=tpu", "bench.device=tpu", "one of auto, cpu, cuda"),
    (["bench.parts=[pack]", "bench.shape=opt-1b"], "opt-1b", "one of tiny, opt-125m", bench_folder),
    ("bench.threads=100000", "bench.threads", "there is no such setting"),
    ("bench.rnds=3", "bench.rnds", "did you mean bench.rounds?"),
    ("bench.run=nope", "nope does not exist", "folder of a run", bench_folder),
    ("page=nope.md", "nope.md", "<!-- bench forward -->"),
]

TRAIN = [
    ("", "out= is missing", "name a folder"),
    ("out=", "out= is missing", "name a folder"),
    ("out=s3://bucket/x", "out=s3://bucket/x", "a local folder"),
    ("train.tokns=3", "train.tokns", "did you mean train.tokens?"),
    ("train.tokens=many", "train.tokens=many", "Tokens to train on"),
    ("train.tokens=0", "train.tokens=0", "more than 0"),
    ("train.num_layers=-1", "train.num_layers=-1", "more than 0"),
    ("train.num_heads=3", "train.num_heads=3", "a divisor of hidden_size=128"),
    ("train.ffn_size=0", "train.ffn_size=0", "more than 0"),
    ("train.vocab_size=10", "train.vocab_size=10", "from 260 to 65536"),
    ("train.vocab_size=65537", "train.vocab_size=65537", "from 260 to 65536"),
    ("train.sequence_length=1", "train.sequence_length=1", "2 or more"),
    ("train.batch_sequences=0", "train.batch_sequences=0", "more than 0"),
    ("train.learning_rate=-1", "train.learning_rate=-1", "more than 0"),
    ("train.learning_rate=nan", "train.learning_rate=nan", "more than 0"),
    ("train.final_rate_share=2", "train.final_rate_share=2", "from 0 to 1"),
    ("train.beta1=1", "train.beta1=1", "below 1"),
    ("train.weight_decay=-1", "train.weight_decay=-1", "0 or more"),
    ("train.embedding_init_std=0", "train.embedding_init_std=0", "null or greater than 0"),
    ("train.penalty_from_layer=4", "train.penalty_from_layer=4", "from 0 to 3"),
    ("train.heldout_percent=51", "train.heldout_percent=51", "from 1 to 50"),
    ("train.checkpoints=[-1]", "train.checkpoints=[-1]", "numbers from 0 to"),
    ("train.precision=float16", "train.precision=float16", "float32 or bfloat16"),
    ("train.seed=-1", "train.seed=-1", "0 or more"),
    (["out={out}", "train.device=abacus"], "train.device=abacus", "cpu"),
    (["out={out}", "data=paper"], "data=paper", "data=local data.path=..."),
    (["out={out}", "data=tokens", "data.path=x.npy"], "data=tokens", "data=local data.path=..."),
    (["out={out}", "data.max_tokens=5"], "data.max_tokens", "use train.tokens"),
    (["out={out}", "data.sequence_length=64"], "data.sequence_length", "train.sequence_length"),
    (["out={out}", "data.packing=document"], "data.packing", "leave them out"),
    (["out={out}", "data.separator=x"], "data.separator", "leave it out"),
    (["out={out}", "data=news"], "data=news", "choose one of"),
]

# Wrong for this model or this machine.
UNFIT = [
    ("collect.layers=99", "collect.layers=99", "at most 3"),
    ("collect.layers=-1", "collect.layers=-1", "at most 3"),
    ("collect.layers=0", "collect.layers=0", "no layer"),
    ("collect.bitmaps=most", "collect.bitmaps=most", "first_half"),
    ("data.max_tokens=15", "data.max_tokens=15", "one sequence of 16"),
    ("data.sequence_length=12", "data.sequence_length=12", "leave it null"),
    ("data.sequence_length=65", "data.sequence_length=65", "64 positions"),
    ("data.packing=document", "data.packing", "is for text"),
    ("data.separator=x", "data.separator", "is for text"),
    ("ray.workers=1000", "ray.workers=1000", "lower"),
    ("ray.cpus_per_worker=1000", "1000 cores", "lower"),
]

UNSHARED = [
    (["data.max_tokens=64", "data.shares={a:0,z:1}"], "'z'", "the domains are 'a', 'b'"),
]

CASES = [
    *table("collect", WRONG_SETTINGS, COLLECT),
    *table("collect", FAILED, [(LONG, "nnn", "choose a shorter one")]),
    *table("collect", FAILED, UNSHARED, base="good"),
    *table("reduce", WRONG_SETTINGS, REDUCE),
    *table("report", WRONG_SETTINGS, REPORT),
    *table("check", WRONG_SETTINGS, CHECK),
    *table("bench", WRONG_SETTINGS, BENCH),
    *table("train", WRONG_SETTINGS, TRAIN),
    *table("collect", WRONG_SETTINGS, UNFIT, base="good"),
]
