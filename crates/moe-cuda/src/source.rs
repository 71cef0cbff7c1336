//! The sources in CUDA C++, part of the program.

/// What stands before every source.
pub const PRELUDE: &str = include_str!("../cuda/prelude.cuh");

/// Kernels that are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Name of its file.
    pub name: &'static str,
    /// Its text, without the prelude.
    pub text: &'static str,
    /// Kernels in it.
    pub kernels: &'static [&'static str],
}

impl Source {
    /// The whole text for the compiler, with the lines numbered as in the two files.
    pub fn program(&self) -> String {
        format!("#line 1 \"prelude.cuh\"\n{PRELUDE}\n#line 1 \"{}\"\n{}", self.name, self.text)
    }
}

/// All of them.
pub const SOURCES: [Source; 4] = [
    Source {
        name: "route.cu",
        text: include_str!("../cuda/route.cu"),
        kernels: &["route_f32", "route_bf16", "route_backward_f32", "route_backward_bf16"],
    },
    Source {
        name: "plan.cu",
        text: include_str!("../cuda/plan.cu"),
        kernels: &["count_choices", "prefix_chunks", "prefix_queues", "scatter_choices"],
    },
    Source {
        name: "activation.cu",
        text: include_str!("../cuda/activation.cu"),
        kernels: &[
            "activation_forward_f32",
            "activation_forward_bf16",
            "activation_backward_f32",
            "activation_backward_bf16",
        ],
    },
    Source {
        name: "combine.cu",
        text: include_str!("../cuda/combine.cu"),
        kernels: &[
            "gather_rows_f32",
            "gather_rows_bf16",
            "gather_sum_f32",
            "gather_sum_bf16",
            "clear_empty_f32",
            "clear_empty_bf16",
        ],
    },
];
