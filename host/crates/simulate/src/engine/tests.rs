use super::*;
use crate::fleet::Decode;
use crate::random::Spread;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Reads 1000 tokens a second, writes 10 for one, and 16 together for two and more.
fn model() -> EngineModel {
    EngineModel {
        load: Spread::Fixed(40.0),
        stop: Spread::Fixed(5.0),
        service: Service::Rates {
            overhead: Spread::Fixed(0.1),
            prefill: 1000.0,
            decode: Decode(vec![(1, 10.0), (2, 16.0)]),
        },
        kv_tokens: None,
        prefix_cache: false,
        notices_hang: ms(30_000),
    }
}

fn job(prompt: u32, output: u32) -> Job {
    Job { prompt, output, common: (ClassId(0), 0), history: (0, 0), took: None }
}

/// An engine that is asked at times, and what it did when.
struct Desk {
    engine: Engine,
    log: Vec<(u64, Progress)>,
}

impl Desk {
    fn new(model: &EngineModel) -> Self {
        let mut engine = Engine::new(model, Random::new(1, "test"));
        engine.up(Duration::ZERO);
        Self { engine, log: Vec::new() }
    }

    fn until(&mut self, time: Duration) {
        while let Some(next) = self.engine.next().filter(|next| *next <= time) {
            let mut progress = Vec::new();
            self.engine.go_on(next, &mut progress);
            self.log.extend(progress.into_iter().map(|done| (next.as_micros() as u64, done)));
        }
    }

    fn at(&mut self, time: Duration) -> &mut Engine {
        self.until(time);
        &mut self.engine
    }

    /// The times at which the answers began and ended, in microseconds.
    fn times(&mut self) -> Vec<(Key, &'static str, u64)> {
        self.until(Duration::MAX);
        let line = |(at, progress): (u64, Progress)| match progress {
            Progress::First(key) => (key, "first", at),
            Progress::Done(key, _) => (key, "done", at),
        };
        self.log.drain(..).map(line).collect()
    }
}

#[test]
fn prompts_are_read_one_after_the_other_and_answers_written_together() {
    let mut desk = Desk::new(&model());
    desk.at(ms(0)).begin(1, job(500, 11), ms(0));
    desk.at(ms(100)).begin(2, job(1000, 5), ms(100));
    // 1: overhead until 0.1 s, read until 0.6 s, its first token at 0.7 s. 2: in line for reading until 0.6 s, read until
    // 1.6 s. By then 1 has 10 tokens, and one to go; from then on each gets 8 a second, so that one takes 0.125 s. 2 has its
    // first token then, too. Alone, it needs another 0.4 s for four.
    let expected = [
        (1, "first", 700_000),
        (1, "done", 1_725_000),
        (2, "first", 1_725_000),
        (2, "done", 2_125_000),
    ];
    assert_eq!(desk.times(), expected);
    assert_eq!(desk.engine.next(), None);
}

#[test]
fn who_leaves_makes_room_for_the_others() {
    let mut desk = Desk::new(&model());
    for key in 1..=3 {
        desk.at(ms(0)).begin(key, job(100, 100), ms(0));
    }
    // Read at 0.2 s, 0.3 s and 0.4 s; 3 is not even read when it leaves, and 2 goes a second after it began.
    let none = desk.at(ms(350)).leave(3, ms(350));
    assert_eq!(none, Used::default());
    // 1 writes one token until 0.3 s; from then on both write 8 a second: 8 of 2 at 1.3 s.
    let used = desk.at(ms(1300)).leave(2, ms(1300));
    assert_eq!(used, Used { cached: 0, written: 8 });
    // 1 has 9 then, and 91 to go at 10 a second.
    assert_eq!(
        desk.times(),
        [(1, "first", 300_000), (2, "first", 425_000), (1, "done", 10_400_000)]
    );
}

#[test]
fn what_does_not_fit_into_the_cache_waits_in_line() {
    let mut desk = Desk::new(&EngineModel { kv_tokens: Some(300), ..model() });
    for (key, prompt) in [(1, 190), (2, 190), (3, 10)] {
        desk.at(ms(0)).begin(key, job(prompt, 10), ms(0));
    }
    let told = desk.at(ms(1000)).told(ms(1000)).unwrap();
    assert_eq!(
        (told.waiting, told.kv_used, told.stale(ms(1000))),
        (2, 666, 0),
        "3 does not go before 2"
    );
    // 1: read at 0.29 s, done at 1.29 s. 2 and 3 begin then: overhead, and 2 is read at 1.58 s, 3 at 1.59 s.
    let times = desk.times();
    assert_eq!(times[..2], [(1, "first", 390_000), (1, "done", 1_290_000)]);
    assert_eq!(times.iter().filter(|(_, what, _)| *what == "done").count(), 3);
    assert_eq!(desk.engine.reserved, 0);
    // Longer than all of it: it has it for itself.
    desk.engine.begin(4, job(400, 1), ms(100_000));
    assert_eq!(desk.times(), [(4, "first", 100_600_000), (4, "done", 100_600_000)]);
}

#[test]
fn beginnings_that_were_read_are_not_read_again() {
    let mut desk = Desk::new(&EngineModel { prefix_cache: true, ..model() });
    let turn =
        |prompt, shared| Job { history: (7, shared), common: (ClassId(0), 100), ..job(prompt, 1) };
    desk.engine.begin(1, turn(1000, 100), ms(0));
    // The history: 1000 and the answer. Of it the client sends 1001, so 500 are read.
    desk.at(ms(10_000)).begin(2, turn(1501, 1001), ms(10_000));
    // Another session has the beginning in common, and no more.
    let other = Job { history: (8, 900), ..turn(1000, 0) };
    desk.at(ms(20_000)).begin(3, other, ms(20_000));
    desk.at(ms(30_000)).down(ms(30_000));
    desk.engine.up(ms(30_000));
    desk.engine.begin(4, turn(1000, 1000), ms(30_000));
    desk.until(Duration::MAX);
    let done = desk.log.iter().filter_map(|(at, progress)| match progress {
        Progress::Done(key, used) => Some((*key, used.cached, *at)),
        Progress::First(_) => None,
    });
    let expected =
        [(1, 0, 1_200_000), (2, 1001, 10_700_000), (3, 100, 21_100_000), (4, 0, 31_200_000)];
    assert_eq!(done.collect::<Vec<_>>(), expected);
}

#[test]
fn each_takes_its_time_where_that_is_how_it_is() {
    let service =
        Service::Fixed { first: Spread::Fixed(1.0), rest: Spread::Fixed(3.0), recorded: false };
    let mut desk = Desk::new(&EngineModel { service, ..model() });
    desk.engine.begin(1, job(100, 30), ms(0));
    desk.at(ms(500)).begin(2, job(100, 30), ms(500));
    // Half as fast for two seconds, and then not at all for a second.
    desk.at(ms(2000)).works_at(0.5, ms(2000));
    desk.at(ms(4000)).works_at(0.0, ms(4000));
    assert_eq!(desk.engine.next(), None);
    desk.at(ms(5000)).works_at(1.0, ms(5000));
    let expected = [
        (1, "first", 1_000_000),
        (2, "first", 1_500_000),
        (1, "done", 6_000_000),
        (2, "done", 6_500_000),
    ];
    assert_eq!(desk.times(), expected);
}

#[test]
fn an_engine_that_ends_leaves_nothing_behind() {
    let mut desk = Desk::new(&model());
    desk.engine.begin(5, job(100, 30), ms(0));
    desk.engine.begin(2, job(100, 30), ms(0));
    desk.at(ms(1300)).begin(9, job(1, 0), ms(1300));
    // 5 writes from 0.2 s on, and 2 from 0.3 s on.
    let broken = desk.at(ms(1300)).down(ms(1300));
    let of = |written| Used { cached: 0, written };
    assert_eq!(broken, [(2, of(8)), (5, of(9)), (9, of(0))]);
    assert_eq!((desk.engine.next(), desk.engine.told(ms(9000))), (None, None));
    desk.engine.up(ms(9000));
    desk.engine.begin(1, job(100, 0), ms(9000));
    assert_eq!(desk.times()[2..], [(1, "first", 9_200_000), (1, "done", 9_200_000)]);
}

#[test]
fn figures_are_those_of_the_last_look() {
    let mut desk = Desk::new(&model());
    for key in 1..=2 {
        desk.engine.begin(key, job(0, 1000), ms(0));
    }
    let told = |desk: &mut Desk, at: u64| {
        let told = desk.at(ms(at)).told(ms(at)).unwrap();
        (told.at.as_millis(), told.decode_tps)
    };
    assert_eq!(told(&mut desk, 900), (0, 0), "nothing is known after one look");
    // They write from 0.1 s on.
    assert_eq!(told(&mut desk, 1999), (1000, 7));
    assert_eq!(told(&mut desk, 60_500), (60_000, 8), "nobody asked in between");
    desk.engine.leave(1, ms(60_500));
    assert_eq!(told(&mut desk, 61_100), (61_000, 9), "13 tokens of one and a half answers");
    assert_eq!(told(&mut desk, 63_000), (63_000, 10));
}

#[test]
fn thousands_at_once_end_as_they_should() {
    let decode = Decode(vec![(1, 100.0), (64, 1600.0)]);
    let service = Service::Rates { overhead: Spread::Fixed(0.0), prefill: 1e9, decode };
    let mut desk = Desk::new(&EngineModel { service, ..model() });
    for key in 0..4000 {
        desk.engine.begin(key, job(1, 400), ms(0));
    }
    // 1600 tokens a second for 4000 answers of 400.
    let times = desk.times();
    let last = times.last().map(|(_, _, at)| *at).unwrap();
    assert!(last.abs_diff(1_000_000_000) <= 4000, "{last}");
    assert_eq!(times.len(), 8000);
}
