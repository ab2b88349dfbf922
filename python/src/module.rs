use crate::{client, device, error, identity, layout, lookup, outcome, space, task};
use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<client::Client>()?;
    module.add_class::<device::Buffers>()?;
    module.add_class::<device::CudaDevice>()?;
    module.add_class::<device::Device>()?;
    module.add_class::<device::HostDevice>()?;
    module.add_class::<identity::Family>()?;
    module.add_class::<identity::Geometry>()?;
    module.add_class::<layout::Layout>()?;
    module.add_class::<lookup::LookupTask>()?;
    module.add_class::<outcome::Found>()?;
    module.add_class::<outcome::Hold>()?;
    module.add_class::<outcome::Loaded>()?;
    module.add_class::<outcome::Prefetched>()?;
    module.add_class::<outcome::Stored>()?;
    module.add_class::<space::Space>()?;
    module.add_class::<task::LoadTask>()?;
    module.add_class::<task::StoreTask>()?;
    module.add_function(wrap_pyfunction!(device::probe_cuda, module)?)?;
    error::add_to(module)
}
