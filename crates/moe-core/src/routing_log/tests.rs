//! Logs small enough to count by hand.

use super::*;

fn log(experts: usize) -> RoutingLog {
    RoutingLog::new(LogOptions { experts: Some(experts), ..LogOptions::default() })
}

fn layer(index: u64) -> LayerId {
    LayerId::new("", index)
}

/// Reads `(step, layer, token, experts)`.
fn read(experts: usize, lines: &[(u64, u64, u64, &[usize])]) -> RoutingReport {
    let mut log = log(experts);
    for &(step, at, token, expert_k) in lines {
        log.add(step, &layer(at), &Token::chose(token, expert_k)).unwrap();
    }
    log.finish().unwrap()
}

#[track_caller]
fn near(got: Option<f64>, want: f64) {
    let got = got.expect("a value");
    assert!((got - want).abs() < 1e-12, "{got} is not {want}");
}

/// Loads 3, 1, 0, 0 of mean 1: the largest is 3, deviations 2, 0, -1, -1: variance 6/4.
#[test]
fn load_by_hand() {
    let report = read(4, &[(0, 0, 0, &[0]), (0, 0, 1, &[0]), (0, 0, 2, &[1]), (0, 0, 3, &[0])]);
    let found = &report.layers[0];
    assert_eq!(found.expert_usage, [0.75, 0.25, 0.0, 0.0]);
    assert_eq!((found.load_imbalance, found.dead_experts), (Some(3.0), 2));
    near(found.load_cv, 1.5f64.sqrt());
    let entropy = 0.75 * (4.0f64 / 3.0).ln() + 0.25 * 4f64.ln();
    near(found.load_entropy, entropy / 4f64.ln());
    assert_eq!((found.dead_expert_proportion, report.totals.dead_experts), (0.5, 2));
}

/// Two choices of four kept; token 1 keeps none, token 2 chose none: two of three left behind.
#[test]
fn drops_and_confidence_by_hand() {
    let mut log = log(2);
    let kept = Token {
        weight_k: Some(&[0.75, 0.25]),
        kept_k: Some(&[true, true]),
        ..Token::chose(0, &[0, 1])
    };
    let dropped = Token {
        weight_k: Some(&[0.9, 0.1]),
        kept_k: Some(&[false, false]),
        ..Token::chose(1, &[0, 1])
    };
    for token in [kept, dropped, Token::chose(2, &[])] {
        log.add(0, &layer(0), &token).unwrap();
    }
    let found = log.finish().unwrap().layers.remove(0);
    near(Some(found.fraction_tokens_left_behind), 2.0 / 3.0);
    assert_eq!((found.fraction_choices_dropped, found.router_confidence), (0.5, Some(0.5)));
    // Entropies of (3/4, 1/4) and (9/10, 1/10) in units of ln 2.
    let h = |p: f64| -(p * p.ln() + (1.0 - p) * (1.0 - p).ln()) / 2f64.ln();
    near(found.chosen_entropy, (h(0.75) + h(0.9)) / 2.0);
    assert_eq!(found.gate_entropy, None);
}

#[test]
fn an_even_gate_has_entropy_one() {
    let mut log = log(4);
    for (id, gate_e) in [(0, [0.25; 4]), (1, [1.0, 0.0, 0.0, 0.0])] {
        log.add(0, &layer(0), &Token { gate_e: Some(&gate_e), ..Token::chose(id, &[0]) }).unwrap();
    }
    near(log.finish().unwrap().layers[0].gate_entropy, 0.5);
}

/// Of tokens 0, 1 and 2, seen twice, 1 swaps its order and 2 changes its second expert.
#[test]
fn fluctuation_by_hand() {
    let report = read(
        4,
        &[
            (5, 0, 0, &[0, 1]),
            (5, 0, 1, &[0, 1]),
            (5, 0, 2, &[2, 3]),
            (9, 0, 2, &[2, 1]),
            (9, 0, 1, &[1, 0]),
            (9, 0, 0, &[0, 1]),
            (9, 0, 7, &[3, 2]),
        ],
    );
    near(report.layers[0].routing_fluctuation, 1.0 / 3.0);
    near(report.layers[0].routing_fluctuation_set, 1.0 / 3.0);
    assert_eq!((report.layers[0].tokens_compared, report.steps), (3, 2));
    assert_eq!((report.first_step, report.last_step), (5, 9));
}

#[test]
fn another_input_is_another_token() {
    let mut log = log(2);
    for (step, input, expert) in [(0, 65, 0), (1, 66, 1), (2, 66, 1)] {
        let expert_k = [expert];
        let token = Token { input: Some(input), ..Token::chose(0, &expert_k) };
        log.add(step, &layer(0), &token).unwrap();
    }
    let report = log.finish().unwrap();
    assert_eq!(report.layers[0].tokens_compared, 1);
    assert_eq!(report.layers[0].routing_fluctuation, Some(0.0));
}

/// Weights say which expert is first where the order does not.
#[test]
fn the_heaviest_expert_is_the_first() {
    let first = |token: Token<'_>| Token { ordered: false, ..token }.first();
    assert_eq!(first(Token::chose(0, &[3, 1])), None);
    assert_eq!(first(Token::chose(0, &[3])), Some(3));
    let weighed = Token { weight_k: Some(&[0.2, 0.8]), ..Token::chose(0, &[3, 1]) };
    assert_eq!(first(weighed), Some(1));
    let tied = Token { weight_k: Some(&[0.5, 0.5]), ..Token::chose(0, &[3, 1]) };
    assert_eq!(first(tied), Some(3));
}

/// Tokens 0 and 1 part between the layers: 2 of 9 ordered pairs; the step after, nobody does.
#[test]
fn cross_layer_instability_by_hand() {
    let report = read(
        3,
        &[
            (0, 0, 0, &[0]),
            (0, 0, 1, &[0]),
            (0, 0, 2, &[1]),
            (0, 1, 0, &[0]),
            (0, 1, 1, &[2]),
            (0, 1, 2, &[1]),
            (1, 0, 0, &[0]),
            (1, 1, 0, &[2]),
        ],
    );
    near(report.layers[0].cross_layer_instability, 1.0 / 9.0);
    assert_eq!(report.layers[1].cross_layer_instability, None);
}

#[test]
fn blocks_of_a_model_are_no_neighbours() {
    let mut log = log(2);
    for id in [LayerId::new("", 0), LayerId::new("mtp", 0)] {
        log.add(0, &id, &Token::chose(0, &[0])).unwrap();
    }
    let report = log.finish().unwrap();
    let names: Vec<_> = report.layers.iter().map(|l| l.layer.as_str()).collect();
    assert_eq!(names, ["0", "mtp/0"]);
    assert_eq!(report.layers[0].cross_layer_instability, None);
}

/// Experts 0 and 1 each take two of four tokens, together once: 1/4 over 1/2 * 1/2.
#[test]
fn coactivation_by_hand() {
    let report =
        read(4, &[(0, 0, 0, &[1, 0]), (0, 0, 1, &[0, 2]), (0, 0, 2, &[1, 2]), (0, 0, 3, &[2, 3])]);
    let pairs = &report.layers[0].coactivation;
    assert_eq!(pairs[0], Pair { experts: [0, 1], share: 0.25, lift: Some(1.0) });
    assert_eq!(pairs.len(), 4);
    near(pairs[3].lift, 0.25 / (0.75 * 0.25));
}

/// Vowels go to expert 0, consonants to expert 1: the expert says all there is to say, ln 2.
#[test]
fn specialisation_by_hand() {
    let mut log = log(2);
    for (id, label) in ["vowel", "consonant", "vowel", "consonant"].into_iter().enumerate() {
        let expert_k = [id % 2];
        let token = Token { label: Some(label), ..Token::chose(id as u64, &expert_k) };
        log.add(0, &layer(0), &token).unwrap();
    }
    let found = log.finish().unwrap().layers[0].specialisation.unwrap();
    near(Some(found.mutual_information), 2f64.ln());
    assert_eq!((found.tokens, found.purity, found.normalised), (4, 1.0, 1.0));
}

#[test]
fn memory_is_bounded() {
    let mut log = RoutingLog::new(LogOptions { memory: 10, ..LogOptions::default() });
    for step in 0..1000 {
        for token in 0..50 {
            log.add(step, &layer(0), &Token::chose(token, &[(token % 3) as usize])).unwrap();
        }
    }
    let report = log.finish().unwrap();
    assert_eq!(report.layers[0].tokens_compared, 999 * 10);
    assert!(report.timeline.len() <= WINDOWS, "{}", report.timeline.len());
    assert_eq!(report.layers[0].tokens, 50_000);
    let (first, last) = (&report.timeline[0], report.timeline.last().unwrap());
    assert_eq!((first.first_step, last.last_step), (0, 999));
    for (window, next) in report.timeline.iter().zip(&report.timeline[1..]) {
        assert_eq!(window.last_step + 1, next.first_step);
    }
    let share: f64 = last.expert_usage[0].iter().sum();
    near(Some(share), 1.0);
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |token: Token<'_>| log(4).add(0, &layer(0), &token).unwrap_err().to_string();
    let two = Token::chose(0, &[0, 3]);
    assert_eq!(refused(Token::chose(0, &[0, 4])), "experts: 4, expected numbers below 4");
    assert_eq!(refused(Token::chose(0, &[1, 1])), "experts: [1, 1], expected each expert once");
    assert_eq!(refused(Token { weight_k: Some(&[1.0]), ..two }), "weights: 1 values, expected 2");
    assert_eq!(refused(Token { kept_k: Some(&[]), ..two }), "kept: 0 values, expected 2");
    let nan = [f64::NAN, 0.0];
    assert_eq!(refused(Token { weight_k: Some(&nan), ..two }), "weights: expected finite numbers");
    assert!(refused(Token { gate_e: Some(&[0.5, 0.2]), ..two }).contains("sum 0.7"));
    assert!(refused(Token { gate_e: Some(&[0.2; 5]), ..two }).contains("5 values"));
    let mut open = RoutingLog::new(LogOptions { labels: 1, ..LogOptions::default() });
    assert!(open.add(0, &layer(0), &Token::chose(0, &[1 << 16])).is_err());
    open.add(3, &layer(0), &Token { label: Some("a"), ..two }).unwrap();
    let twice = open.add(3, &layer(0), &two).unwrap_err().to_string();
    assert_eq!(twice, "token: 0 is there twice in layer 0 of step 3");
    let back = open.add(2, &layer(0), &two).unwrap_err().to_string();
    assert_eq!(back, "step: 2 after 3, expected steps that do not fall");
    let label = open.add(4, &layer(0), &Token { label: Some("b"), ..two }).unwrap_err();
    assert!(label.to_string().contains("more than 1 different"));
    assert_eq!(log(4).finish().unwrap_err(), LogError::Empty);
}
