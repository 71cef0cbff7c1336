use crate::rig::*;
use moe_routers::*;
use moe_core::*;
use serde_json::{json, Value};
use tch::{Kind, Tensor};

#[test]
fn explore() {
    for paper in routers() {
        let base = preset(paper, paper.presets[0]);
        let keys = paper.router(&base).unwrap().settings();
        for (key, value) in &keys {
            let bads: Vec<Value> = match value { Value::Number(_) => vec![json!(-1), json!("x"), Value::Null], Value::Null => vec![json!(-1), json!("x")], _ => vec![json!("nonesuch")] };
            for bad in bads {
                let mut s = base.clone(); s.insert(key.clone(), bad.clone());
                let r = paper.router(&s).and_then(|c| c.check(4));
                println!("{} {key} = {bad}: {}", paper.id, r.err().map_or("accepted".to_owned(), |e| e.to_string()));
            }
        }
        for (k, v) in [("top_k", json!(0)), ("top_k", json!(5)), ("preset", json!("nonesuch")), ("nonesuch", json!(1)), ("preset", json!(3))] {
            if k == "top_k" && !keys.contains_key(k) { continue }
            let mut s = base.clone(); s.insert(k.into(), v.clone());
            let r = paper.router(&s).and_then(|c| c.check(4));
            println!("{} {k} = {v}: {}", paper.id, r.err().map_or("accepted".to_owned(), |e| e.to_string()));
        }
        for e in [0usize] {
            let r = paper.router(&base).and_then(|c| c.check(e));
            println!("{} E = {e}: {}", paper.id, r.err().map_or("accepted".to_owned(), |e| e.to_string()));
        }
    }
    let show = |b: &Both| format!("{} | {}", b.torch.as_ref().err().map_or("ok".to_owned(), |e| e.to_string()), b.host.as_ref().err().map_or("ok".to_owned(), |e| e.to_string()));
    for (paper, name) in routers().flat_map(|p| p.presets.iter().map(move |s| (p, s))) {
        let Ok(rig) = Rig::new(paper, &preset(paper, name), 4, Kind::Double).or_else(|_| Rig::new(paper, &preset(paper, name), 16, Kind::Double)) else { continue };
        for (what, bad) in [("nan", f64::NAN), ("inf", f64::INFINITY)] {
            for phase in PHASES {
                let x = rig.tokens(12); let _ = x.get(0).get(2).get(1).fill_(bad);
                let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.run(&x, &Given::all(12, Kind::Double), phase)));
                println!("ROUTE {}:{name} {what} {phase:?}: {}", paper.id, r.map_or("PANIC".to_owned(), |b| show(&b)));
            }
        }
        let all = || Given::all(12, Kind::Double);
        for (what, given) in [("no ids", Given { token_gt: None, ..all() }), ("no previous", Given { before_gtd: None, ..all() }), ("no attention", Given { attention_gmtt: None, ..all() }), ("previous of 3 tokens", Given { before_gtd: Given::all(3, Kind::Double).before_gtd, ..all() }), ("ids beyond", Given { token_gt: all().token_gt.map(|t| t + 1000), ..all() }), ("negative ids", Given { token_gt: all().token_gt.map(|t| t - 3), ..all() })] {
            if what == "negative ids" {
                let noise = SeededNoise::eval(0,0);
                let cx = RouteCx { token_gt: given.token_gt.as_ref(), ..RouteCx::new(Phase::Eval, &noise) };
                if paper.id != "hash" && paper.id != "stable-moe" { continue }
                let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.router.forward(&rig.tokens(12), &cx, &|x, _| x.shallow_clone()).err().map_or("ok".to_owned(), |e| e.to_string())));
                println!("ROUTE {}:{name} {what}: {r:?}", paper.id); continue;
            }
            let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rig.run(&rig.tokens(12), &given, Phase::Eval)));
            let r = r.map_or("PANIC".to_owned(), |b| show(&b));
            if r != "ok | ok" { println!("ROUTE {}:{name} {what}: {r}", paper.id); }
        }
    }
}
