//! The k largest scores of a row in one pass, for `k <= 16`.
//!
//! Axis letters: `t` tokens, `e` experts, `k` choices.

use crate::KernelError;

/// The most choices per token.
pub const MOST_CHOICES: usize = 16;

/// Writes the `choices` largest of each row of `score_te`, largest first, and which experts they
/// are. Of equal scores the one with the lower expert comes first; NaN counts as the smallest.
///
/// # Errors
///
/// If `choices` is zero, above [`MOST_CHOICES`] or `experts`, or a slice has another length than
/// its axes say.
pub fn top_k(
    score_te: &[f32],
    experts: usize,
    choices: usize,
    expert_tk: &mut [u32],
    score_tk: &mut [f32],
) -> Result<(), KernelError> {
    let most = experts.min(MOST_CHOICES);
    if choices == 0 || choices > most {
        return Err(KernelError::Choices { got: choices, most });
    }
    let tokens = score_te.len() / experts;
    KernelError::check("score_te", tokens * experts, score_te.len())?;
    KernelError::check("expert_tk", tokens * choices, expert_tk.len())?;
    KernelError::check("score_tk", tokens * choices, score_tk.len())?;
    let outputs = expert_tk.chunks_exact_mut(choices).zip(score_tk.chunks_exact_mut(choices));
    for (score_e, (expert_k, score_k)) in score_te.chunks_exact(experts).zip(outputs) {
        top_of_row(score_e, expert_k, score_k);
    }
    Ok(())
}

/// Insertion into a short sorted list: most scores fail the first comparison.
fn top_of_row(score_e: &[f32], expert_k: &mut [u32], score_k: &mut [f32]) {
    let last = score_k.len() - 1;
    for (expert, &score) in score_e.iter().enumerate() {
        let full = expert > last;
        if full && !above(score, score_k[last]) {
            continue;
        }
        let mut place = if full { last } else { expert };
        while place > 0 && above(score, score_k[place - 1]) {
            score_k[place] = score_k[place - 1];
            expert_k[place] = expert_k[place - 1];
            place -= 1;
        }
        score_k[place] = score;
        expert_k[place] = expert as u32;
    }
}

/// Strictly above, with NaN below everything.
fn above(score: f32, other: f32) -> bool {
    score > other || (other.is_nan() && !score.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(score_e: &[f32], choices: usize) -> (Vec<u32>, Vec<f32>) {
        let (mut expert_k, mut score_k) = (vec![9; choices], vec![9.0; choices]);
        top_k(score_e, score_e.len(), choices, &mut expert_k, &mut score_k).unwrap();
        (expert_k, score_k)
    }

    #[test]
    fn ties_go_to_the_lower_expert() {
        assert_eq!(top(&[1.0, 3.0, 3.0, 2.0], 3), (vec![1, 2, 3], vec![3.0, 3.0, 2.0]));
        assert_eq!(top(&[0.0, -0.0, 0.0], 2).0, [0, 1]);
    }

    #[test]
    fn nan_is_chosen_last() {
        assert_eq!(top(&[f32::NAN, -1.0, f32::NEG_INFINITY, f32::NAN], 3).0, [1, 2, 0]);
    }

    #[test]
    fn too_many_choices_are_refused() {
        let refused =
            |experts, choices| top_k(&[0.0; 32], experts, choices, &mut [], &mut []).unwrap_err();
        assert_eq!(refused(4, 5), KernelError::Choices { got: 5, most: 4 });
        assert_eq!(refused(32, 17), KernelError::Choices { got: 17, most: 16 });
        assert_eq!(refused(0, 1), KernelError::Choices { got: 1, most: 0 });
    }

    proptest::proptest! {
        #[test]
        fn as_a_stable_sort(score_e in proptest::collection::vec(-3_i8..3, 1..40), k in 1_usize..17) {
            let score_e: Vec<f32> = score_e.into_iter().map(f32::from).collect();
            let k = k.min(score_e.len());
            let mut order: Vec<u32> = (0..score_e.len() as u32).collect();
            order.sort_by(|a, b| score_e[*b as usize].total_cmp(&score_e[*a as usize]));
            proptest::prop_assert_eq!(top(&score_e, k).0, &order[..k]);
        }
    }
}
