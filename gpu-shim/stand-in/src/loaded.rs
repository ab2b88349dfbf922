//! The library as a test sees it.
#![expect(unsafe_code, reason = "loads a library and calls it")]

use crate::{Code, Report, Setting};
use libloading::os::unix::{Library, RTLD_NOW, Symbol};
use std::error::Error;
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What cargo calls the library.
const FILE: &str = "libundercroft_stand_in.so";

/// Why the stand-in could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Cargo has not built it, or the test lies elsewhere.
    #[error("no {FILE} in {}", .0.iter().map(|at| at.display().to_string()).collect::<Vec<_>>().join(" or "))]
    NotBuilt(Vec<PathBuf>),
    /// The loader refuses it.
    #[error("cannot load {}: {why}", path.display())]
    Refused {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        why: String,
    },
    /// Another library of the driver's name was loaded before it.
    #[error(
        "`libcuda.so` is another library already: load the stand-in before anything asks for the driver"
    )]
    AnotherDriver,
}

/// The stand-in, loaded as the process's driver, for one test at a time: the driver is the
/// process's. It is reset by [`StandIn::load`], and stays loaded.
#[derive(Debug)]
pub struct StandIn {
    library: &'static Loaded,
    _alone: MutexGuard<'static, ()>,
}

#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    library: Library,
}

/// Failures by chance, for [`StandIn::chaos`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chaos {
    /// Equal seeds fail equally, as far as threads call in the same order.
    pub seed: u64,
    /// Of a million calls so many fail with a code that is plausible for them, and of a million
    /// operations as many, without harm to the context.
    pub per_million: u64,
    /// Of a million operations so many kill their context.
    pub sticky_per_million: u64,
    /// The calls that destroy fail too: they do what they do and answer a code.
    pub destroying: bool,
}

impl StandIn {
    /// Loads the library, which cargo puts beside the test or into `deps` beside it, and resets it.
    /// Waits while another test has it. Whatever asks for `libcuda.so` in this process from now on finds it.
    ///
    /// # Errors
    /// It is not there or cannot be loaded, or there is a driver already.
    pub fn load() -> Result<Self, LoadError> {
        static ALONE: Mutex<()> = Mutex::new(());
        static LOADED: OnceLock<Loaded> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let library = match LOADED.get() {
            Some(library) => library,
            None => {
                let loaded = Loaded::open()?;
                LOADED.get_or_init(|| loaded)
            }
        };
        let this = Self { library, _alone: alone };
        this.reset();
        Ok(this)
    }

    /// Where the library lies. A copy of it called `libcuda.so` in a directory of `LD_LIBRARY_PATH`
    /// is the driver of another process; see [`Setting`] for how that is told what to be.
    ///
    /// # Errors
    /// It is not built.
    pub fn path() -> Result<PathBuf, LoadError> {
        find()
    }

    /// Drops everything, as if the library had just been loaded, but for `cuInit`. What waits on
    /// streams never starts.
    pub fn reset(&self) {
        let reset: Symbol<unsafe extern "C" fn()> = self.library.symbol("stand_in_reset");
        // SAFETY: this is the function's type, and it has no conditions.
        unsafe { reset() }
    }

    /// Makes the driver another one. Objects that exist stay what they are.
    pub fn set(&self, setting: Setting, value: u64) {
        type Set = unsafe extern "C" fn(*const c_char, u64) -> i32;
        let set: Symbol<Set> = self.library.symbol("stand_in_set");
        let name = c_text(setting.name());
        // SAFETY: this is the function's type, and the text ends in NUL.
        let answer = unsafe { set(name.as_ptr(), value) };
        assert_eq!(answer, 0, "the library has the same settings");
    }

    /// Lets no operation start until it is called with `false`.
    pub fn hold(&self, hold: bool) {
        self.set(Setting::Hold, u64::from(hold));
    }

    /// From the `nth` call of that name on (1 is the next), `times` of them do nothing but answer
    /// `code`. The names are those of the library's symbols, `cuMemAlloc_v2`.
    ///
    /// # Panics
    /// There is no such call.
    pub fn fail(&self, call: &str, nth: u64, code: Code, times: u64) {
        type Fail = unsafe extern "C" fn(*const c_char, u64, i32, u64) -> i32;
        let fail: Symbol<Fail> = self.library.symbol("stand_in_fail");
        let name = c_text(call);
        // SAFETY: this is the function's type, and the text ends in NUL.
        let answer = unsafe { fail(name.as_ptr(), nth, code.0, times) };
        assert_eq!(answer, 0, "{call} is a call of the driver");
    }

    /// The `nth` operation that starts from now on (1 is the next; copies, batches and kernels
    /// count) fails with `code`. Sticky: nothing of it is done, what waits never starts, and every
    /// call on the context answers the code, but those that destroy, push and pop. Not sticky: half of what it
    /// should have written is garbage, and whoever waits for something queued after it learns the
    /// code, until somebody has: what is queued after that is clean.
    pub fn fail_operation(&self, nth: u64, code: Code, sticky: bool) {
        type Fail = unsafe extern "C" fn(u64, i32, i32);
        let fail: Symbol<Fail> = self.library.symbol("stand_in_fail_operation");
        // SAFETY: this is the function's type, and it has no conditions.
        unsafe { fail(nth, code.0, i32::from(sticky)) }
    }

    /// Calls and operations fail by chance from now on. The calls that wait or look tell of
    /// operations only. `Chaos::default()` ends it.
    pub fn chaos(&self, chaos: Chaos) {
        type Set = unsafe extern "C" fn(u64, u64, u64, i32);
        let set: Symbol<Set> = self.library.symbol("stand_in_chaos");
        let Chaos { seed, per_million, sticky_per_million, destroying } = chaos;
        // SAFETY: this is the function's type, and it has no conditions.
        unsafe { set(seed, per_million, sticky_per_million, i32::from(destroying)) }
    }

    /// What is alive and what was done since the reset.
    #[must_use]
    pub fn report(&self) -> Report {
        type Write = unsafe extern "C" fn(*mut Report);
        let write: Symbol<Write> = self.library.symbol("stand_in_report");
        let mut report = Report::default();
        // SAFETY: this is the function's type, and it writes one report.
        unsafe { write(&raw mut report) };
        report
    }

    /// How often the call of that name was made, whatever it answered.
    #[must_use]
    pub fn calls(&self, call: &str) -> u64 {
        type Count = unsafe extern "C" fn(*const c_char) -> u64;
        let count: Symbol<Count> = self.library.symbol("stand_in_calls");
        let name = c_text(call);
        // SAFETY: this is the function's type, and the text ends in NUL.
        unsafe { count(name.as_ptr()) }
    }

    /// What the driver's rules forbid and was done: the first 64 in words. How many there were is
    /// in the report.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        type Copy = unsafe extern "C" fn(usize, *mut u8, usize) -> usize;
        let copy: Symbol<Copy> = self.library.symbol("stand_in_violation");
        let texts = (0..).map_while(|index| {
            let mut text = vec![0; 1_024];
            // SAFETY: this is the function's type, and the buffer is as long as is said.
            let len = unsafe { copy(index, text.as_mut_ptr(), text.len()) };
            text.truncate(len);
            (len > 0).then(|| String::from_utf8_lossy(&text).into_owned())
        });
        texts.collect()
    }

    /// Holds that nothing is alive any more and no rule was broken.
    ///
    /// # Panics
    /// Something is, or one was: with all of it in words.
    pub fn assert_clean(&self) {
        let mut found = self.violations();
        found.extend(self.report().leaks().into_iter().map(|leak| format!("still there: {leak}")));
        assert!(found.is_empty(), "the driver was not left as it should be:\n{}", found.join("\n"));
    }

    /// A function of the library, which may be called as long as the process lives.
    ///
    /// # Safety
    /// `F` is the type of the function of that name.
    ///
    /// # Panics
    /// There is no such function.
    #[must_use]
    pub unsafe fn function<F: Copy>(&self, name: &str) -> F {
        *self.library.symbol::<F>(name)
    }
}

impl Loaded {
    fn open() -> Result<Self, LoadError> {
        let path = find()?;
        let refused = |error: libloading::Error| {
            // The loader's own sentence is the source.
            let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            LoadError::Refused { path: path.clone(), why }
        };
        // SAFETY: what runs when it is loaded is what runs for any library of Rust.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW) }.map_err(refused)?;
        // SAFETY: as above, or a driver of the machine, which is what the test would do next.
        let driver = unsafe { Library::open(Some("libcuda.so"), RTLD_NOW) };
        // SAFETY: the symbol is only looked for.
        let ours = driver.is_ok_and(|it| unsafe { it.get::<fn()>("stand_in_reset") }.is_ok());
        if !ours {
            return Err(LoadError::AnotherDriver);
        }
        Ok(Self { path, library })
    }

    fn symbol<F>(&self, name: &str) -> Symbol<F> {
        // SAFETY: the callers in this file name each function with the type that it has in
        // `entries/control.rs`; those of `StandIn::function` answer for theirs.
        let found = unsafe { self.library.get(name) };
        found.unwrap_or_else(|error| panic!("{}: {error}", self.path.display()))
    }
}

/// Beside the running program, in `deps` beside it, or one directory up and in `deps` there.
fn find() -> Result<PathBuf, LoadError> {
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new("."));
    let above = beside.parent().unwrap_or(Path::new("."));
    let places = [beside.to_owned(), beside.join("deps"), above.join("deps"), above.to_owned()];
    let found = places.iter().map(|place| place.join(FILE)).find(|path| path.is_file());
    found.ok_or_else(|| LoadError::NotBuilt(places.into()))
}

fn c_text(text: &str) -> CString {
    CString::new(text).expect("names have no NUL")
}
