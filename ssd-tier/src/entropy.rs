use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;

/// Where the log's random bytes come from: store names and salts. The simulator has its own.
pub type Entropy = Box<dyn FnMut(&mut [u8]) + Send>;

/// Fills the buffer with the system's random bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The system's randomness.
///
/// # Errors
/// The system has none to give.
pub(crate) fn system() -> io::Result<Entropy> {
    fill(&mut [0; 1])?;
    Ok(Box::new(|bytes| fill(bytes).expect("the system had randomness at start")))
}
