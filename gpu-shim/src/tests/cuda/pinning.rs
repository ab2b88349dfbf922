//! What is registered with the driver, when, and for how long.

use super::*;
use undercroft_arena::{HugePages, Part, PartOptions, PartView, Staging, StagingView};
use undercroft_wire::{PartId, SlotId};

const PATIENCE: Duration = Duration::from_secs(60);
const PART_BYTES: u64 = 1 << 20;

pub(super) fn part(id: u32) -> (Part, PartView) {
    let options = PartOptions { huge: HugePages::Off, lock: false, ..PartOptions::default() };
    let part = Part::create(PartId(id), PART_BYTES, &options).unwrap().0;
    let view = PartView::map(part.read_only_fd().unwrap(), PartId(id), PART_BYTES).unwrap();
    (part, view)
}

#[test]
fn parts_are_registered_read_only_in_the_background_and_let_go_before_they_are_unmapped() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    assert!(device.can_pin_read_only().unwrap());
    let (ours, view) = part(1);
    let (_, other) = part(2);
    ours.span(8192, 20_480).unwrap().copy_from_slice(&page_of(3, geometry()));
    let page = view.span(8192, 20_480).unwrap();
    device.pins().part(&view);
    device.pins().part(&other);
    assert!(device.pins().settle(PATIENCE));
    assert_eq!(device.pins().facts().pinned_bytes, 2 * PART_BYTES);
    // From inside the part, by the device alone.
    let before = stand_in.report().pageable_copies;
    device.load(loads(&[page], [4])).unwrap().wait().unwrap();
    assert_eq!((stand_in.report().pageable_copies, stand_in.report().kernels), (before, 1));
    assert_eq!(block_of(&device, 4), page_of(3, geometry()));
    device.pins().part_leaves(&view);
    drop(view);
    assert_eq!(device.pins().facts().pinned_bytes, PART_BYTES);
    assert_eq!(stand_in.report().registrations, 1);
    drop(device);
    assert_eq!(stand_in.report().registrations, 0, "the rest goes with the device");
    stand_in.assert_clean();
}

#[test]
fn a_mapping_at_the_address_of_an_old_one_is_not_taken_for_it() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    let (_, view) = part(1);
    let at = view.base_ptr();
    device.pins().part(&view);
    assert!(device.pins().settle(PATIENCE));
    // Unmapped without a word: somebody broke the rule.
    drop(view);
    let (ours, view) = part(1);
    if view.base_ptr() == at {
        ours.span(0, 20_480).unwrap().copy_from_slice(&page_of(9, geometry()));
        let page = view.span(0, 20_480).unwrap();
        device.load(loads(&[page], [0])).unwrap().wait().unwrap();
        assert_eq!(block_of(&device, 0), page_of(9, geometry()));
        assert_eq!(stand_in.report().kernels, 0, "it was taken for registered");
    }
    drop(device);
}

#[test]
fn a_part_that_is_not_registered_yet_or_was_refused_is_copied_all_the_same() {
    let stand_in = stand_in();
    for refused in [false, true] {
        let device = device(forced(CopyMode::Kernel));
        let (ours, view) = part(1);
        ours.span(4096, 20_480).unwrap().copy_from_slice(&page_of(6, geometry()));
        if refused {
            stand_in.fail("cuMemHostRegister_v2", 1, Code::OUT_OF_MEMORY, 1);
            device.pins().part(&view);
            assert!(device.pins().settle(PATIENCE));
            let facts = device.pins().facts();
            assert_eq!((facts.pinned_bytes, facts.refused_bytes), (0, PART_BYTES));
            let refusal = facts.refusal.unwrap().to_string();
            assert!(
                refusal.contains("cuMemHostRegister") && refusal.contains("MEMORY"),
                "{refusal}"
            );
        }
        let page = view.span(4096, 20_480).unwrap();
        device.load_by_layer(loads(&[page], [1])).unwrap().wait().unwrap();
        assert_eq!(block_of(&device, 1), page_of(6, geometry()));
        device.pins().part_leaves(&view);
    }
    stand_in.assert_clean();
}

#[test]
fn a_device_that_cannot_register_read_only_memory_says_so() {
    let stand_in = stand_in();
    stand_in.set(Setting::ReadOnlyRegistration, 0);
    let device = device(forced(CopyMode::Pitched));
    assert!(!device.can_pin_read_only().unwrap());
    let (_, view) = part(1);
    device.pins().part(&view);
    assert!(device.pins().settle(PATIENCE));
    assert_eq!(device.pins().facts().refused_bytes, PART_BYTES);
    // Staging is written to, and registered all the same.
    let staging = Staging::create(4, 24_576).unwrap();
    let seen = StagingView::map(staging.fd().try_clone_to_owned().unwrap(), 4, 24_576).unwrap();
    device.pins().staging(&seen);
    assert!(device.pins().settle(PATIENCE));
    assert_eq!(device.pins().facts().pinned_bytes, 4 * 24_576);
}

#[test]
fn staging_is_registered_until_nobody_else_uses_it() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Batched));
    device.write_block(BlockId(3), &page_of(8, geometry())).unwrap();
    let staging = Staging::create(4, 20_480).unwrap();
    let seen = StagingView::map(staging.fd().try_clone_to_owned().unwrap(), 4, 20_480).unwrap();
    device.pins().staging(&seen);
    assert!(device.pins().settle(PATIENCE));
    let slot = seen.slot(SlotId(2)).unwrap();
    drop(seen);
    let before = stand_in.report().pageable_copies;
    device.store(stores(std::slice::from_ref(&slot), [3])).unwrap().wait().unwrap();
    assert_eq!(bytes_of(&slot), page_of(8, geometry()));
    assert_eq!((stand_in.report().pageable_copies, stand_in.report().batches), (before, 1));
    drop(slot);
    soon("it is let go", || stand_in.report().registrations == 0);
    assert_eq!(device.pins().facts().pinned_bytes, 0);
    drop(device);
    stand_in.assert_clean();
}

#[test]
fn two_devices_share_what_is_registered_and_one_that_hears_twice_of_it_lets_go_after_the_second() {
    let stand_in = stand_in();
    let [one, other] = [device(forced(CopyMode::Kernel)), device(forced(CopyMode::Kernel))];
    let (ours, view) = part(1);
    ours.span(0, 20_480).unwrap().copy_from_slice(&page_of(2, geometry()));
    let staging = Staging::create(4, 20_480).unwrap();
    let seen = StagingView::map(staging.fd().try_clone_to_owned().unwrap(), 4, 20_480).unwrap();
    for pins in [one.pins(), one.pins(), other.pins()] {
        pins.part(&view);
        pins.staging(&seen);
        assert!(pins.settle(PATIENCE));
        assert_eq!(pins.facts().refusal, None);
    }
    assert_eq!(stand_in.report().registrations, 2);
    for device in [&one, &other] {
        let page = view.span(0, 20_480).unwrap();
        let kernels = stand_in.report().kernels;
        device.load(loads(&[page], [0])).unwrap().wait().unwrap();
        assert_eq!(stand_in.report().kernels, kernels + 1);
        assert_eq!(block_of(device, 0), page_of(2, geometry()));
    }
    one.pins().part_leaves(&view);
    other.pins().part_leaves(&view);
    assert_eq!(stand_in.report().registrations, 2, "one has heard of it twice");
    one.pins().part_leaves(&view);
    assert_eq!(stand_in.report().registrations, 1);
    drop(seen);
    soon("staging that only devices keep is let go", || stand_in.report().registrations == 0);
    drop((one, other));
    stand_in.assert_clean();
}

#[test]
fn what_is_unregistered_while_it_is_copied_is_waited_for() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    let (_ours, view) = part(1);
    device.pins().part(&view);
    assert!(device.pins().settle(PATIENCE));
    stand_in.hold(true);
    let load = device.load(loads(&[view.span(0, 20_480).unwrap()], [0])).unwrap();
    std::thread::scope(|scope| {
        // The client ends although somebody still loads.
        let leaving = scope.spawn(|| device.pins().part_leaves(&view));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!leaving.is_finished());
        stand_in.hold(false);
    });
    load.wait().unwrap();
    drop((load, device));
    stand_in.assert_clean();
}

#[test]
fn pins_of_a_device_that_is_gone_register_nothing() {
    let stand_in = stand_in();
    let device = device(forced(CopyMode::Kernel));
    let pins = device.pins().clone();
    let (_ours, view) = part(1);
    pins.part(&view);
    drop(device);
    let (_others, later) = part(2);
    pins.part(&later);
    assert!(pins.settle(PATIENCE));
    assert_eq!((pins.facts().pinned_bytes, stand_in.report().registrations), (0, 0));
    pins.part_leaves(&view);
    drop(pins);
    stand_in.assert_clean();
}
