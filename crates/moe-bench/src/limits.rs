//! What libtorch throws and `tch` turns into a panic, as errors that say what to do: no memory, and no
//! deterministic form of an operation.

use crate::recipe::Recipe;
use anyhow::{Result, anyhow};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// In the words of libtorch's allocators for host and device.
const NO_MEMORY: [&str; 2] = ["can't allocate memory", "out of memory"];
const NO_DETERMINISM: &str = "does not have a deterministic implementation";

/// Does `work` for a run of `recipe`; a limit that libtorch met is an error that names what to lower.
///
/// # Errors
/// As `work`, and those limits. Any other panic goes on.
pub fn within<T>(recipe: &Recipe, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // What `work` was changing is dropped with it: nobody sees it half changed.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(explain(recipe, &format!("{error:#}")).unwrap_or(error)),
        Err(panic) => match explain(recipe, words(panic.as_ref())) {
            Some(error) => Err(error),
            None => resume_unwind(panic),
        },
    }
}

/// Keeps the panics that [`within`] explains from being printed as such.
pub fn say_once() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !is_limit(words(info.payload())) {
            print(info);
        }
    }));
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
}

fn is_limit(said: &str) -> bool {
    NO_MEMORY.iter().any(|words| said.contains(words)) || said.contains(NO_DETERMINISM)
}

fn explain(recipe: &Recipe, said: &str) -> Option<anyhow::Error> {
    let router = &recipe.router.name;
    if !is_limit(said) {
        return None;
    }
    if said.contains(NO_DETERMINISM) {
        let what = sentence(said, NO_DETERMINISM);
        return Some(anyhow!("router {router}: {what}; leave --deterministic out, or use a CPU"));
    }
    let what = NO_MEMORY.iter().find(|words| said.contains(*words)).map(|w| sentence(said, w));
    let (batch, sequence) = (recipe.train.batch, recipe.train.sequence);
    let room = match &recipe.capacity {
        Some(capacity) => format!("capacity = {}", toml::Value::try_from(capacity).ok()?),
        None => "the router's own capacity".into(),
    };
    Some(anyhow!(
        "out of memory with train.batch = {batch}, train.sequence = {sequence} and {room} (router {router}): {}; \
         lower train.batch, train.sequence, the capacity or model.width; the last checkpoint stands",
        what.unwrap_or_default()
    ))
}

/// The line of a C++ message that has `words`.
fn sentence(said: &str, words: &str) -> String {
    let said = said.replace("\\n", "\n");
    said.lines().find(|line| line.contains(words)).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &'static str) -> String {
        let recipe = Recipe::parse("capacity = { factor = 1.5 }", &[]).unwrap();
        within::<()>(&recipe, || panic!("{text}")).unwrap_err().to_string()
    }

    #[test]
    fn limits_are_explained() {
        let cpu = "Torch(\"[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes.\nframe #0\")";
        let text = said(cpu);
        for part in
            ["train.batch = 16", "train.sequence = 128", "1.5", "allocate 512 bytes", "lower"]
        {
            assert!(text.contains(part), "no {part} in: {text}");
        }
        assert!(!text.contains("frame"), "{text}");
        assert!(said("CUDA out of memory. Tried to allocate 2 GiB").contains("2 GiB"));
        let text = said("kthvalue CUDA does not have a deterministic implementation, but you set");
        assert!(text.contains("--deterministic") && text.contains("kthvalue"), "{text}");
    }

    #[test]
    #[should_panic(expected = "something else")]
    fn other_panics_go_on() {
        said("something else");
    }
}
