//! What each subcommand does.

use crate::cells::Watch;
use crate::cli::{
    CompareArgs, DataAction, EvalArgs, InspectArgs, PapersArgs, SpeedArgs, TrainArgs,
};
use crate::compare::{Comparison, default_out};
use crate::dashboard::board::{Board, Lane};
use crate::dashboard::screen::Screen;
use crate::dashboard::{self, Dashboard};
use crate::environment::{environment, hardware_threads};
use crate::error::Misuse;
use crate::log::EvalLine;
use crate::progress::Bars;
use crate::recipe::Recipe;
use crate::results::Results;
use crate::run::{Event, Outcome, RunDir, load, prepare};
use crate::say::{note, say, say_json, say_line};
use crate::subject::Subject;
use crate::table::{Style, render};
use crate::{data, papers, worker};
use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use moe_train::LayerReport;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::{Device, Kind, Tensor};

/// `moe papers`.
///
/// # Errors
/// An unknown name.
pub fn papers(args: &PapersArgs) -> Result<()> {
    match &args.name {
        _ if args.markdown => say(&papers::page())?,
        Some(name) => {
            let paper = moe_routers::paper(name).map_err(|e| Misuse::new(e.to_string()))?;
            say(&papers::entry(paper).to_string())?;
        }
        None => say(&format!("{}\n", papers::list()))?,
    }
    Ok(())
}

/// `moe speed`.
///
/// # Errors
/// A size or a device that cannot be used.
pub fn speed(args: &SpeedArgs) -> Result<()> {
    if let Some(dir) = &args.out {
        return scaling(args, dir);
    }
    let Some(report) = crate::speed::measure(args)? else { return Ok(()) };
    if args.json {
        return say_json(&report);
    }
    Ok(say(&crate::speed::table::render(&report))?)
}

/// `moe speed --scaling`: the curves as files, and their slopes as a table.
fn scaling(args: &SpeedArgs, dir: &Path) -> Result<()> {
    let found = crate::speed::scaling::measure(args, |point| note(point))?;
    fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let json = serde_json::to_string_pretty(&found)?;
    let svg = crate::speed::scaling::draw::svg(&found).map_err(anyhow::Error::msg)?;
    for (name, text) in [("scaling.json", &json), ("scaling.svg", &svg)] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
    }
    Ok(match args.json {
        true => say_line(json),
        false => say(&crate::speed::scaling::render(&found)),
    }?)
}

/// `moe train`.
///
/// # Errors
/// A recipe, data or directory that cannot be used, or a step that cannot be taken.
pub fn train(args: &TrainArgs) -> Result<()> {
    if args.dry_run {
        return crate::dry_run::dry_run(args);
    }
    let screen = Screen::default();
    let stop = stop_flag(&screen)?;
    if let Some(cap) = args.memory_cap {
        cap.impose()?;
    }
    let device = args.machine.ready()?;
    let precision = args.precision.iter().map(|p| format!("train.precision={p}"));
    let sets: Vec<String> = args.sets.iter().cloned().chain(precision).collect();
    let recipe = Recipe::read(&args.recipe, &sets)?;
    let stem = args.recipe.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    let dir = RunDir(args.out.clone().unwrap_or_else(|| default_out(&stem)));
    if dir.metrics().exists() && !args.resume {
        let message =
            format!("{}: there is a run already; --resume goes on with it", dir.0.display());
        return Err(Misuse::new(message).into());
    }
    let prepared = prepare(&recipe, device, &stop)?;
    if args.worker {
        worker::stop_at_end_of_input(stop.clone());
        let outcome = prepared.train(&dir, args.resume, &mut |event| worker::tell(&event))?;
        worker::tell_end(&outcome);
        return Ok(());
    }
    let outcome = if dashboard::wanted(args.no_tui) {
        let lane = Lane::new(&recipe.router.name, recipe.seed, recipe.train.last_step());
        let board = Board::new(format!("moe train {stem}"), vec![lane]);
        let dashboard = Dashboard::start(board, screen, stop)?;
        prepared.train(&dir, args.resume, &mut |event| dashboard.event(&event))?
    } else {
        let bar = train_bar();
        let outcome = prepared.train(&dir, args.resume, &mut |event| draw(&bar, &event))?;
        bar.finish_and_clear();
        outcome
    };
    match outcome {
        Outcome::Finished(metrics) => {
            let text = recipe.is_language_model();
            let perplexity = text.then(|| format!(", perplexity {:.2}", metrics.valid_perplexity));
            let accuracy = metrics.valid_accuracy.map(|share| format!(", accuracy {share:.4}"));
            say_line(format_args!(
                "{}: validation loss {:.4}{}{}, {:.0} tokens/s",
                dir.0.display(),
                metrics.valid_loss,
                perplexity.unwrap_or_default(),
                accuracy.unwrap_or_default(),
                metrics.tokens_per_second
            ))?;
        }
        Outcome::Stopped(step) => say_line(format_args!(
            "{}: stopped after step {step}; the same command with --out {} --resume goes on",
            dir.0.display(),
            dir.0.display()
        ))?,
    }
    Ok(())
}

fn train_bar() -> ProgressBar {
    let style = "{bar:32} {pos}/{len} steps  {elapsed_precise}, about {eta_precise} left  {msg}";
    ProgressBar::new(0).with_style(ProgressStyle::with_template(style).expect("a valid template"))
}

fn draw(bar: &ProgressBar, event: &Event<'_>) {
    match event {
        Event::Ready { done, last } => {
            bar.set_length(*last);
            bar.set_position(*done);
            bar.reset_eta();
        }
        Event::Step(report) => {
            bar.set_position(report.step);
            bar.set_message(format!("loss {:.4}", report.loss));
        }
        Event::Eval(line) => {
            let accuracy = line.report.measures.get("accuracy");
            let accuracy = accuracy.map_or(String::new(), |share| format!(", accuracy {share:.4}"));
            let loss = line.report.loss;
            bar.println(format!("step {:>6}: validation loss {loss:.4}{accuracy}", line.step));
        }
        // Also where there is no terminal for the bar.
        Event::Note(line) => bar.suspend(|| note(line)),
    }
}

/// A flag that signals set; a second one gives `screen` back before the process ends.
fn stop_flag(screen: &Screen) -> std::io::Result<Arc<AtomicBool>> {
    let screen = screen.clone();
    worker::stop_flag(move || screen.restore())
}

/// `moe eval`.
///
/// # Errors
/// No run there, a damaged checkpoint, or data that cannot be read.
pub fn eval(args: &EvalArgs) -> Result<()> {
    let stop = stop_flag(&Screen::default())?;
    if !args.sweeps.is_empty() {
        return crate::sweep::sweep(args, &stop);
    }
    if !args.few_shot.is_empty() {
        return crate::few_shot::evaluate(args, &stop);
    }
    if let Some(place) = &args.retrieval {
        return crate::retrieval::retrieval(args, place, &stop);
    }
    let device = args.machine.ready()?;
    let prepared = load((&args.run, args.checkpoint), &args.sets, device, &stop)?;
    let split = args.split.into();
    let line = match &args.routing_log {
        Some(path) => crate::inspect::write::decisions(&prepared, (split, args.batches), path)?,
        None => prepared.evaluate(split, args.batches)?,
    };
    if args.json {
        return say_json(&line);
    }
    Ok(say(&evaluated(&line, prepared.subject()))?)
}

/// An evaluation for people.
fn evaluated(line: &EvalLine, subject: &Subject) -> String {
    let (report, unit) = (&line.report, subject.unit());
    let head = format!("step {}, {} split, {} {unit}", line.step, line.split, report.tokens);
    let perplexity =
        || format!("loss {:.4} nats per token, perplexity {:.3}", report.loss, report.loss.exp());
    let loss = match subject {
        Subject::Drawings(..) => format!("squared error {:.4} per image", report.loss),
        Subject::Images(..) | Subject::Labelled(_) => {
            format!("loss {:.4} nats per {}", report.loss, unit.trim_end_matches('s'))
        }
        Subject::Masked(..) => perplexity(),
        Subject::Text(_) => {
            let bits = line.bits_per_byte.map(|bits| format!("{bits:.4}"));
            let bits = bits.unwrap_or_else(|| "undefined: the tokens lose text".into());
            format!("{}\nbits per byte {bits}", perplexity())
        }
    };
    let measure = |(name, value): (&String, &f64)| {
        format!("{} {}", name.replace('_', " "), crate::sweep::shown(name, *value))
    };
    let layer = |(index, layer): (usize, &LayerReport)| {
        let total: f64 = layer.load_e.iter().sum::<f64>().max(1.0);
        let shares: Vec<_> = layer.load_e.iter().map(|n| format!("{:.3}", n / total)).collect();
        format!(
            "sparse layer {index}: shares {}; gate entropy {:.3}; tokens left behind {:.2} %",
            shares.join(" "),
            layer.gate_entropy,
            100.0 * layer.fraction_tokens_left_behind
        )
    };
    let measures = report.measures.iter().map(measure);
    let layers = report.layers.iter().enumerate().map(layer);
    let lines = [head, loss].into_iter().chain(measures).chain(layers);
    lines.map(|line| line + "\n").collect()
}

/// `moe inspect`.
///
/// # Errors
/// A log that cannot be read, a line that is none of a routing log, or a page that cannot be written.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let report = crate::inspect::inspect(args)?;
    crate::inspect::write_page(args, &report)?;
    if args.json {
        return say_json(&report);
    }
    Ok(say(&crate::inspect::table(&report))?)
}

/// `moe compare`.
///
/// # Errors
/// Flags or data that cannot be used, files that cannot be written, or a run that failed.
pub fn compare(args: &CompareArgs) -> Result<()> {
    let screen = Screen::default();
    let stop = stop_flag(&screen)?;
    args.machine.ready()?;
    let comparison = Comparison::new(args)?;
    comparison.left_out().iter().for_each(note);
    let watch = watch(args, &comparison, screen, &stop)?;
    let (results, stopped) = comparison.run(args, &stop, watch.as_ref())?;
    drop(watch);
    let out = comparison.out().display();
    if args.json {
        say_json(&results)?;
    } else {
        say_line(render(&results, Style::Terminal))?;
        let files = format!("{out}/report.html  {out}/results.{{json,csv,md,parquet}}");
        say_line(format_args!("{files}  {out}/curves.csv"))?;
    }
    if stopped {
        note(format_args!(
            "stopped; finished runs are kept, and the same command with --out {out} continues"
        ));
        return Ok(());
    }
    let failed = results.rows.iter().filter(|row| row.error.is_some()).count();
    ensure!(failed == 0, "{failed} of {} runs failed; see the table", results.rows.len());
    Ok(())
}

/// How the progress of a comparison is shown: as a dashboard where there is a terminal for it, else as bars.
fn watch(
    args: &CompareArgs,
    comparison: &Comparison,
    screen: Screen,
    stop: &Arc<AtomicBool>,
) -> Result<Box<dyn Watch>> {
    if !dashboard::wanted(args.no_tui) {
        return Ok(Box::new(Bars::new(comparison.cells())));
    }
    let board = Board::of_cells(format!("moe compare {}", args.preset), comparison.cells());
    Ok(Box::new(Dashboard::start(board, screen, Arc::clone(stop))?))
}

/// `moe report`.
///
/// # Errors
/// No results there, results of another layout, or a directory that cannot be written.
pub fn report(dirs: &[PathBuf], study: Option<&Path>) -> Result<()> {
    let mut read = Vec::new();
    for dir in dirs {
        let results = results(dir)?;
        crate::compare::write(dir, &results)?;
        say_line(render(&results, Style::Terminal))?;
        say_line(dir.join("report.html").display())?;
        read.push((dir.clone(), results));
    }
    let Some(path) = study else { return Ok(()) };
    let page = crate::study::page(&read)?;
    fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(say_line(path.display())?)
}

/// The results in the directory of a comparison.
fn results(dir: &Path) -> Result<Results> {
    let path = dir.join("results.json");
    let json = fs::read_to_string(&path)
        .map_err(|e| Misuse::new(format!("{}: {e}; this is no comparison", path.display())))?;
    let results: Results =
        serde_json::from_str(&json).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        results.schema == crate::results::SCHEMA,
        "{}: schema {}, expected {}",
        path.display(),
        results.schema,
        crate::results::SCHEMA
    );
    Ok(results)
}

/// `moe data`.
///
/// # Errors
/// A set that no registry carries, or one that could not be fetched.
pub fn data(action: &DataAction) -> Result<()> {
    let text = match action {
        DataAction::List => data::list()?,
        DataAction::Fetch { name } => {
            let place = data::fetch(data::find(name)?, &data::cache()?)?;
            format!("{}\n", place.display())
        }
    };
    Ok(say(&text)?)
}

/// `moe schema`.
///
/// # Errors
/// Standard output that cannot be written.
pub fn schema() -> Result<()> {
    Ok(say(&crate::schema::schema())?)
}

/// `moe doctor`.
///
/// # Errors
/// If libtorch does not compute what it should.
pub fn doctor() -> Result<()> {
    let found = environment(Device::Cpu);
    say_line(format_args!("moe          {} (commit {})", found.version, found.commit))?;
    say_line(format_args!("platform     {}", found.platform))?;
    let features = found.cpu_features.join(" ");
    say_line(format_args!("processor    {} with {features}", found.cpu))?;
    say_line(format_args!("threads      {}", hardware_threads()))?;
    let place = moe_torch_sys::libtorch_directory();
    let place = place.map_or("?".into(), |place| place.display().to_string());
    say_line(format_args!("libtorch     {} in {place}", found.libtorch))?;
    let (part, devices) = (moe_torch_sys::load_cuda(), tch::Cuda::device_count());
    say_line(format_args!("CUDA         {part:?}, {devices} devices"))?;
    let one = Tensor::ones([64, 64], (Kind::Float, Device::Cpu));
    let sum = one.matmul(&one).sum(Kind::Double).double_value(&[]);
    ensure!(sum == 64.0 * 64.0 * 64.0, "libtorch multiplies wrongly: {sum}");
    Ok(say_line("verdict      fine")?)
}
