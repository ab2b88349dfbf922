use crate::calls::{Driver, NO_TIMING, NON_BLOCKING, STREAM_ORDER};
use undercroft_stand_in::{Chaos, Code};

/// A device, a stream, and a page that is pinned.
struct Scene {
    driver: Driver,
    stream: u64,
    device: u64,
    page: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let driver = Driver::with_context();
        let stream = driver.stream(NON_BLOCKING).unwrap();
        let device = driver.alloc(64).unwrap();
        let page = vec![7; 64];
        driver.register(&page, 0).unwrap();
        Self { driver, stream, device, page }
    }

    fn copy(&self) -> Result<(), Code> {
        self.driver.write_async(self.device, &self.page, self.stream)
    }

    fn event(&self) -> u64 {
        let event = self.driver.event(NO_TIMING).unwrap();
        self.driver.record(event, self.stream).unwrap();
        event
    }

    fn end(self) {
        self.driver.unregister(&self.page).unwrap();
        self.driver.free(self.device).unwrap();
        self.driver.destroy_stream(self.stream).unwrap();
        self.driver.end();
    }
}

#[test]
fn the_call_that_is_meant_fails_as_often_as_is_meant() {
    let scene = Scene::new();
    let driver = &scene.driver;
    driver.stand_in.fail("cuMemAlloc_v2", 2, Code::OUT_OF_MEMORY, 2);
    let answers: Vec<_> = (0..4).map(|_| driver.alloc(16)).collect();
    let failed: Vec<_> = answers.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, true, false]);
    assert_eq!(answers[1], Err(Code::OUT_OF_MEMORY));
    answers.into_iter().flatten().for_each(|at| driver.free(at).unwrap());

    // A call that fails does nothing: what should have gone is still there.
    driver.stand_in.fail("cuMemHostUnregister", 1, Code::DEINITIALIZED, 1);
    assert_eq!(driver.unregister(&scene.page), Err(Code::DEINITIALIZED));
    assert_eq!(driver.stand_in.report().registrations, 1);
    assert_eq!(driver.stand_in.report().failed_calls, 3);
    assert_eq!(driver.stand_in.calls("cuMemAlloc_v2"), 5);
    driver.stand_in.fail("cuInit", 1, Code::UNKNOWN, 1);
    assert_eq!(driver.init(0), Err(Code::UNKNOWN));
    scene.end();
}

#[test]
#[should_panic(expected = "cuMemAlloc is a call of the driver")]
fn a_call_that_there_is_not_cannot_be_planned() {
    let driver = Driver::new();
    driver.stand_in.fail("cuMemAlloc", 1, Code::OUT_OF_MEMORY, 1);
}

/// All that was on its way when somebody learned of the failure may have to do with it; what comes
/// later has not.
#[test]
fn a_copy_that_fails_is_told_to_whoever_waits_for_it() {
    let scene = Scene::new();
    let driver = &scene.driver;
    driver.stand_in.fail_operation(2, Code::OPERATING_SYSTEM, false);
    driver.stand_in.hold(true);
    scene.copy().unwrap();
    let before = scene.event();
    scene.copy().unwrap();
    let at = scene.event();
    let after = scene.event();
    driver.stand_in.hold(false);
    let failed = Err(Code::OPERATING_SYSTEM);
    assert_eq!(driver.synchronize_event(after), failed);
    let later = scene.event();
    assert_eq!(driver.synchronize_event(later), Ok(()));
    assert_eq!(driver.query(before), Ok(()));
    assert_eq!([driver.query(at), driver.query(after)], [failed, failed]);
    assert_eq!(driver.synchronize_stream(scene.stream), Ok(()), "it was told");
    let mut back = [0; 64];
    driver.read(&mut back, scene.device).unwrap();
    assert_ne!(back, [7; 64], "what it left is garbage");

    driver.stand_in.fail_operation(1, Code::OPERATING_SYSTEM, false);
    scene.copy().unwrap();
    assert_eq!(driver.synchronize_stream(scene.stream), failed);
    assert_eq!(driver.synchronize_stream(scene.stream), failed, "nothing is newer");
    driver.stand_in.fail_operation(1, Code::OPERATING_SYSTEM, false);
    scene.copy().unwrap();
    assert_eq!(driver.synchronize(), failed);
    scene.copy().unwrap();
    assert_eq!(driver.synchronize(), Ok(()));
    driver.stand_in.fail_operation(1, Code::OPERATING_SYSTEM, false);
    assert_eq!(driver.read(&mut back, scene.device), failed);
    assert_eq!(driver.read(&mut back, scene.device), Ok(()));
    assert_eq!(driver.stand_in.report().failed_operations, 4);
    [before, at, after, later].iter().for_each(|it| driver.destroy_event(*it).unwrap());
    scene.end();
}

#[test]
fn a_context_that_dies_answers_its_code_and_gives_all_back() {
    let scene = Scene::new();
    let driver = &scene.driver;
    let mut back = vec![1; 64];
    driver.register(&back, 0).unwrap();
    driver.stand_in.fail_operation(2, Code::LAUNCH_FAILED, true);
    driver.stand_in.hold(true);
    scene.copy().unwrap();
    let before = scene.event();
    scene.copy().unwrap();
    driver.read_async(&mut back, scene.device, scene.stream).unwrap();
    let after = scene.event();
    driver.stand_in.hold(false);
    let dead = Err(Code::LAUNCH_FAILED);
    assert_eq!(driver.synchronize_event(after), dead);
    assert_eq!(back, [1; 64], "what waits never starts");
    assert_eq!(driver.query(before), dead);
    assert_eq!(scene.copy(), dead);
    assert_eq!(driver.synchronize_stream(scene.stream), dead);
    assert_eq!(driver.synchronize(), dead);
    assert_eq!(driver.alloc(16).err(), dead.err());
    assert_eq!(driver.event(0).err(), dead.err());
    assert_eq!(driver.register(&[0; 8], 0), dead);
    assert_eq!(driver.retain(0).err(), dead.err());
    let copy = (scene.device, scene.page.as_ptr().addr() as u64, 64);
    assert_eq!(driver.batch(&[copy], &[(0, STREAM_ORDER)], scene.stream).0, dead);
    // The other device's context lives.
    assert_eq!(driver.device_count(), Ok(1));
    driver.unregister(&back).unwrap();
    driver.destroy_event(before).unwrap();
    driver.destroy_event(after).unwrap();
    scene.end();

    // Whoever retains it anew has one that is well.
    let driver = Driver::with_context();
    driver.synchronize().unwrap();
    driver.end();
}

/// A stubborn caller: whatever fails is tried again, and a dead context given up.
#[test]
fn with_chaos_every_kind_of_call_fails_and_nothing_is_lost() {
    let driver = Driver::new();
    let mut dead = 0;
    for seed in 0..200 {
        let context = driver.retain(0).unwrap();
        driver.push(context).unwrap();
        let (per_million, sticky_per_million) = (100_000, 20_000);
        driver.stand_in.chaos(Chaos { seed, per_million, sticky_per_million, destroying: true });
        dead += u64::from(work(&driver).is_none());
        driver.stand_in.chaos(Chaos::default());
        driver.pop().unwrap();
        driver.release(0).unwrap();
        driver.stand_in.assert_clean();
    }
    let report = driver.stand_in.report();
    assert!(report.failed_calls > 200 && report.failed_operations > 25, "{report:?}");
    assert!(dead > 5 && dead < 195, "{dead} contexts died");
}

/// What only a context answers that is dead.
const STICKY: [Code; 4] =
    [Code::ILLEGAL_ADDRESS, Code::LAUNCH_FAILED, Code::ECC_UNCORRECTABLE, Code::UNKNOWN];

/// Until it is done. None: the context died.
fn persist<T>(mut act: impl FnMut() -> Result<T, Code>) -> Option<T> {
    loop {
        match act() {
            Ok(done) => return Some(done),
            Err(code) if STICKY.contains(&code) => return None,
            Err(_) => {}
        }
    }
}

fn work(driver: &Driver) -> Option<()> {
    let page = vec![5; 4_096];
    let mut back = vec![0; 4_096];
    let stream = persist(|| driver.stream(NON_BLOCKING))?;
    let device = persist(|| driver.alloc(4_096));
    let pinned = persist(|| driver.register(&page, 0));
    let pinned_too = persist(|| driver.register(&back, 0));
    let mut done = None;
    if let (Some(device), Some(()), Some(())) = (device, pinned, pinned_too) {
        done = persist(|| {
            driver.write_async(device, &page, stream)?;
            driver.synchronize_stream(stream)
        })
        .and_then(|()| {
            persist(|| {
                driver.read_async(&mut back, device, stream)?;
                driver.synchronize_stream(stream)
            })
        });
    }
    if done.is_some() {
        assert_eq!(back, page, "what went well is right");
    }
    // What destroys has done it, whatever it answers.
    device.map(|device| driver.free(device));
    pinned.map(|()| driver.unregister(&page));
    pinned_too.map(|()| driver.unregister(&back));
    let _ = driver.destroy_stream(stream);
    done
}
