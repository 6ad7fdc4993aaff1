"""Tiny copies of published data sets, with their ground truth written as published, and what should be read from them.

Every maker writes into a folder and returns, by id, split, label and name of the class; None where the set has none. The red of
the n-th of these rows is n.
"""

import io
import json
import pickle
import struct

import numpy as np
import scipy.io
from PIL import Image

FISH = ["n01440764", "n01443537", "n01484850"]
"""Three classes of ImageNet, in order."""


def picture(level, size=(12, 10)):
    """A PNG file whose red says which one it is, its green where."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = level, np.arange(size[0])
    pixels[..., 2] = np.arange(size[1])[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def images(root, names):
    for level, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(level % 256))


def text(root, name, *lines):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n")


def wrote(root, rows):
    images(root, rows)
    return rows


def mat(root, name, **variables):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / name, variables)


def structures(*fields, rows):
    """A row vector of structures, as MATLAB has it."""
    found = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for number, row in enumerate(rows):
        found[0, number] = row
    return found


def imagenet(root):
    """With the devkit, whose numbers are not those of the wnids, and ReaL."""
    text(root, "words.txt", "n00001740\tentity", *(f"{wnid}\tfish {n}, a kind" for n, wnid in enumerate(FISH)))
    order = [FISH[2], FISH[0], FISH[1], "n00001740"]
    devkit = "ILSVRC2012_devkit_t12/data"
    text(root, f"{devkit}/ILSVRC2012_validation_ground_truth.txt", "1", "3", "2")
    synsets = structures("ILSVRC2012_ID", "WNID", rows=[(n, wnid) for n, wnid in enumerate(order, start=1)])
    mat(root, f"{devkit}/meta.mat", synsets=synsets.T)
    (root / "real.json").write_text(json.dumps([[2, 0], [], [1]]))
    rows = {f"train/{wnid}/{wnid}_{n}.JPEG": ("train", n, wnid) for n, wnid in enumerate(FISH)}
    for row, label in enumerate((2, 1, 0), start=1):
        rows[f"val/ILSVRC2012_val_{row:08}.JPEG"] = ("val", label, FISH[label])
    return wrote(root, rows)


def imagenet_kaggle(root):
    text(root, "LOC_synset_mapping.txt", *(f"{wnid} fish {n}, a kind" for n, wnid in enumerate(FISH)))
    answers = [f"ILSVRC2012_val_{n:08},{FISH[3 - n]} 1 2 3 4 " for n in (3, 1, 2)]
    text(root, "LOC_val_solution.csv", "ImageId,PredictionString", *answers)
    place = "ILSVRC/Data/CLS-LOC"
    rows = {f"{place}/train/{wnid}/{wnid}_{n}.JPEG": ("train", n, wnid) for n, wnid in enumerate(FISH)}
    for n in (1, 2, 3):
        rows[f"{place}/val/ILSVRC2012_val_{n:08}.JPEG"] = ("val", 3 - n, FISH[3 - n])
    return wrote(root, rows)


def imagenet_v2(root):
    numbers = sorted(range(1000), key=str)
    content = picture(0, size=(2, 2))
    for number in numbers:
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / "a.jpeg").write_bytes(content)
    return {f"{number}/a.jpeg": ("test", number, None) for number in numbers}


def imagenet_wnids(root):
    text(root, "README.txt", "ImageNet-A has these classes.", "", f"{FISH[1]} stingray", f"{FISH[2]} goldfinch")
    return wrote(root, {f"{wnid}/0.01_{n}.jpg": ("test", n, wnid) for n, wnid in enumerate(FISH[1:])})


def coco(root, name, files, **more):
    held = {
        "images": [{"id": 10 + n, "file_name": file} for n, (file, _) in enumerate(files)],
        "annotations": [{"id": n, "image_id": 10 + n, "category_id": c} for n, (_, c) in reversed([*enumerate(files)])],
        **more,
    }
    (root / name).write_text(json.dumps(held))


def inaturalist2018(root):
    names = ["Aves alba", "Plantae rosa", "Fungi bolus"]
    root.mkdir(parents=True, exist_ok=True)
    kinds = [{"id": n, "supercategory": "x"} for n in range(3)]
    train = [(f"train_val2018/Plantae/{label}/a.jpg", label) for label in (2, 0, 1)]
    val = [(f"train_val2018/Plantae/{label}/b.jpg", label) for label in (1, 2)]
    coco(root, "train2018.json", train, categories=kinds)
    coco(root, "val2018.json", val, categories=kinds)
    (root / "categories.json").write_text(json.dumps([{"id": n, "name": name} for n, name in enumerate(names)]))
    rows = [(file, "train", label) for file, label in train] + [(file, "val", label) for file, label in val]
    return wrote(root, {file: (split, label, names[label]) for file, split, label in rows})


def inaturalist2021(root):
    names = ["Lumbricus terrestris", "Sabella spallanzanii"]
    root.mkdir(parents=True, exist_ok=True)
    kinds = [{"id": n, "name": name, "common_name": "worm"} for n, name in enumerate(names)]
    train = [(f"train_mini/0000{label}_Animalia_Annelida/a.jpg", label) for label in (1, 0)]
    val = [("val/00001_Animalia_Annelida/b.jpg", 1)]
    coco(root, "train_mini.json", train, categories=kinds)
    coco(root, "val.json", val, categories=kinds)
    rows = [(file, "train", label) for file, label in train] + [(file, "val", label) for file, label in val]
    return wrote(root, {file: (split, label, names[label]) for file, split, label in rows})


def places205(root):
    start = "data/vision/torralba/deeplearning/images256"
    names = ["abbey", "apartment_building/outdoor"]
    lists = {"train": [("a/abbey/1.jpg", 0), ("a/apartment_building/outdoor/2.jpg", 1)], "val": [("a/abbey/3.jpg", 0)]}
    for split, rows in lists.items():
        text(root, f"trainvalsplit_places205/{split}_places205.csv", *(f"{path} {label}" for path, label in rows))
    found = {f"{start}/{p}": (split, n, names[n]) for split, rows in lists.items() for p, n in rows}
    return wrote(root, found)


def food101(root):
    text(root, "meta/classes.txt", "apple_pie", "waffles")
    text(root, "meta/labels.txt", "Apple pie", "Waffles")
    text(root, "meta/train.txt", "apple_pie/12", "waffles/7", "waffles/8")
    text(root, "meta/test.txt", "waffles/9")
    rows = {
        "apple_pie/12": ("train", 0),
        "waffles/7": ("train", 1),
        "waffles/8": ("train", 1),
        "waffles/9": ("test", 1),
    }
    return wrote(root, {f"images/{f}.jpg": (split, n, ("apple_pie", "waffles")[n]) for f, (split, n) in rows.items()})


def cifar_pixels(levels):
    """Rows of CIFAR: the red plane, the green one, the blue one."""
    found = np.zeros((len(levels), 3, 32, 32), np.uint8)
    found[:, 0] = np.asarray(levels)[:, None, None]
    found[:, 1] = np.arange(32)
    found[:, 2] = np.arange(32)[:, None]
    return found.reshape(len(levels), 3072)


def python2(held):
    """A pickle as Python 2 and its numpy wrote it (protocol 2): texts are bytes, arrays carry theirs."""

    def one(value):
        if isinstance(value, np.ndarray):
            rows, columns = value.shape
            head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
            raw = b"T" + struct.pack("<i", value.size) + value.tobytes()
            return head + b"(K\x01" + shape + kind + b"\x89" + raw + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(map(one, value)) + b"e"
        if isinstance(value, int):
            return b"K" + bytes([value])
        return b"T" + struct.pack("<i", len(value)) + value.encode("latin1")

    return b"\x80\x02}(" + b"".join(one(part) for pair in held.items() for part in pair) + b"u."


def cifar10(root):
    root.mkdir(parents=True, exist_ok=True)
    names = ["airplane", "automobile", "bird"]
    rows, level = {}, 0
    for file in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels = [(level + 2) % 3, level % 3] if file == "data_batch_2" else [level % 3]
        for place, label in enumerate(labels):
            rows[f"{file}:{place}"] = ("test" if file == "test_batch" else "train", label, names[label])
        pixels = cifar_pixels(range(level, level + len(labels)))
        (root / file).write_bytes(python2({"batch_label": file, "labels": labels, "data": pixels, "filenames": ["x"]}))
        level += len(labels)
    (root / "batches.meta").write_bytes(python2({"label_names": names, "num_vis": 5}))
    (root / "readme.html").write_text("x")
    return rows


def cifar100(root):
    """By Python 3, with bytes as keys; as saved anew by many."""
    root.mkdir(parents=True, exist_ok=True)
    fine, coarse = [b"apple", b"aquarium_fish", b"bear"], [b"fruit", b"animals"]
    rows, level = {}, 0
    for file, labels in (("train", [2, 0]), ("test", [1])):
        held = {
            b"data": cifar_pixels(range(level, level + len(labels))), b"fine_labels": labels,
            b"coarse_labels": [min(label, 1) for label in labels],
        }  # fmt: skip
        (root / file).write_bytes(pickle.dumps(held, protocol=2 if file == "train" else 5))
        rows |= {f"{file}:{place}": (file, label, fine[label].decode()) for place, label in enumerate(labels)}
        level += len(labels)
    (root / "meta").write_bytes(pickle.dumps({b"fine_label_names": fine, b"coarse_label_names": coarse}))
    return rows


def sun397(root):
    names = ["apartment_building/outdoor", "abbey"]
    text(root, "ClassName.txt", "/a/apartment_building/outdoor", "/a/abbey")
    text(root, "Partitions/Training_01.txt", "/a/abbey/sun_1.jpg", "/a/apartment_building/outdoor/sun_2.jpg")
    text(root, "Partitions/Testing_01.txt", "/a/abbey/sun_3.jpg")
    rows = {"a/abbey/sun_1.jpg": ("train", 1), "a/apartment_building/outdoor/sun_2.jpg": ("train", 0)}
    rows |= {"a/abbey/sun_3.jpg": ("test", 1)}
    return wrote(root, {file: (split, n, names[n]) for file, (split, n) in rows.items()})


CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]


def cars(root):
    names = np.array([CARS], dtype=object)
    mat(root, "devkit/cars_meta.mat", class_names=names)

    def annotations(rows):
        return structures("bbox_x1", "class", "fname", rows=[(39.0, label, file) for file, label in rows])

    mat(root, "devkit/cars_train_annos.mat", annotations=annotations([("00001.jpg", 2), ("00002.jpg", 1)]))
    mat(root, "cars_test_annos_withlabels.mat", annotations=annotations([("00001.jpg", 2)]))
    mat(root, "devkit/cars_test_annos.mat", annotations=structures("fname", rows=[("00001.jpg",)]))
    rows = {"cars_train/00001.jpg": ("train", 1, CARS[1]), "cars_train/00002.jpg": ("train", 0, CARS[0])}
    return wrote(root, rows | {"cars_test/00001.jpg": ("test", 1, CARS[1])})


def cars_in_one(root):
    rows = [("car_ims/000001.jpg", 1, 0), ("car_ims/000002.jpg", 2, 1), ("car_ims/000003.jpg", 2, 0)]
    annotations = structures("relative_im_path", "class", "test", rows=rows)
    mat(root, "cars_annos.mat", annotations=annotations, class_names=np.array([CARS], dtype=object))
    return wrote(root, {file: (("train", "test")[test], n - 1, CARS[n - 1]) for file, n, test in rows})


def aircraft(root):
    text(root, "data/variants.txt", "Cessna 172", "707-320", "F-16A/B")
    lists = {"train": [("0034309", "Cessna 172")], "val": [("1025794", "F-16A/B")], "test": [("0000001", "707-320")]}
    order, rows = ["Cessna 172", "707-320", "F-16A/B"], {}
    for split, named in lists.items():
        text(root, f"data/images_variant_{split}.txt", *(f"{number} {variant}" for number, variant in named))
        rows |= {f"data/images/{n}.jpg": (split, order.index(variant), variant) for n, variant in named}
    return wrote(root, rows)


def voc2007(root):
    place = "ImageSets/Main"
    text(root, f"{place}/aeroplane_trainval.txt", "000005 -1", "000007  1", "000009  0")
    text(root, f"{place}/dog_trainval.txt", "000005  1", "000007  1", "000009 -1")
    text(root, f"{place}/aeroplane_test.txt", "000001 -1")
    text(root, f"{place}/dog_test.txt", "000001  1")
    text(root, f"{place}/val.txt", "000009")
    text(root, f"{place}/trainval.txt", "000005", "000007", "000009")
    splits = {"000005": "train", "000007": "train", "000009": "val", "000001": "test"}
    return wrote(root, {f"JPEGImages/{image}.jpg": (split, None, None) for image, split in splits.items()})


def mask(root, name, values, *, palette=False):
    """A mask of 12 by 10 pixels whose first ones have these numbers, the others 0."""
    numbers = np.zeros(120, np.uint8)
    numbers[: len(values)] = values
    picture = Image.fromarray(numbers.reshape(10, 12))
    if palette:
        picture.putpalette([*range(255, -1, -1)] * 3)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(root / name)


def voc2012_masks(root):
    place, lists = "ImageSets/Segmentation", {"train": ["2007_000032", "2011_000005"], "val": ["2007_000033"]}
    for split, names in {**lists, "test": ["2008_000006"]}.items():
        text(root, f"{place}/{split}.txt", *names)
    for names in lists.values():
        for name in names:
            mask(root, f"SegmentationClass/{name}.png", [0, 20, 255, 21], palette=True)
    splits = [*((name, split) for split, names in lists.items() for name in names), ("2008_000006", "test")]
    return wrote(root, {f"JPEGImages/{name}.jpg": (split, None, None) for name, split in splits})


def ade20k(root):
    rows = {}
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        mask(root, f"annotations/{folder}/{name}.png", [0, 1, 150, 151])
        rows[f"images/{folder}/{name}.jpg"] = ({"training": "train", "validation": "val"}[folder], None, None)
    return wrote(root, rows)


def cityscapes(root):
    rows = {}
    for split, city in (("test", "bonn"), ("train", "aachen"), ("val", "ulm")):
        rows[f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png"] = (split, None, None)
        mask(root, f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png", [0, 7, 33, 29])
    return wrote(root, rows)


def dtd(root):
    text(root, "labels/train1.txt", "banded/banded_0002.jpg", "zigzagged/zigzagged_0001.jpg")
    text(root, "labels/val1.txt", "banded/banded_0003.jpg")
    text(root, "labels/test1.txt", "zigzagged/zigzagged_0004.jpg")
    text(root, "labels/train2.txt", "banded/banded_0003.jpg")
    rows = {"banded/banded_0002.jpg": ("train", 0, "banded"), "zigzagged/zigzagged_0001.jpg": ("train", 1, "zigzagged")}
    rows |= {"banded/banded_0003.jpg": ("val", 0, "banded"), "zigzagged/zigzagged_0004.jpg": ("test", 1, "zigzagged")}
    return wrote(root, {f"images/{file}": row for file, row in rows.items()})


def pets(root):
    text(root, "annotations/trainval.txt", "Abyssinian_100 1 1 1", "american_bulldog_10 2 2 1")
    text(root, "annotations/test.txt", "american_bulldog_11 2 2 1")
    text(root, "annotations/list.txt", "#Image CLASS-ID SPECIES BREED ID", "Abyssinian_100 1 1 1")
    rows = {"Abyssinian_100": ("train", 0, "Abyssinian"), "american_bulldog_10": ("train", 1, "american_bulldog")}
    rows |= {"american_bulldog_11": ("test", 1, "american_bulldog")}
    return wrote(root, {f"images/{name}.jpg": row for name, row in rows.items()})


def flowers102(root):
    mat(root, "imagelabels.mat", labels=np.asarray([[102, 1, 77, 1]], np.uint8))
    sets = {"trnid": [[2]], "valid": [[4]], "tstid": [[3, 1]]}
    mat(root, "setid.mat", **{key: np.asarray(rows, np.uint16) for key, rows in sets.items()})
    rows = {2: ("train", 0, None), 4: ("val", 0, None), 3: ("test", 76, None), 1: ("test", 101, None)}
    return wrote(root, {f"jpg/image_{n:05}.jpg": row for n, row in rows.items()})


def cub200(root):
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross"]
    text(root, "classes.txt", *(f"{n} {name}" for n, name in enumerate(names, start=1)))
    files = [f"{names[0]}/a.jpg", f"{names[0]}/b.jpg", f"{names[1]}/c.jpg"]
    text(root, "images.txt", *(f"{n} {file}" for n, file in enumerate(files, start=1)))
    text(root, "image_class_labels.txt", "1 1", "2 1", "3 2")
    text(root, "train_test_split.txt", "1 0", "2 1", "3 1")
    rows = zip(files, (("test", 0), ("train", 0), ("train", 1)), strict=True)
    return wrote(root, {f"images/{file}": (split, n, names[n]) for file, (split, n) in rows})


def landmarks(root, protocol=2):
    """Two queries; the second one's lists are arrays."""
    gallery, queries = ["all_souls_000013", "all_souls_000026", "oxford_002985"], ["all_souls_000006", "oxford_000317"]
    gnd = [
        {"bbx": [2.4, 1.0, 7.6, 5.0], "easy": [1], "hard": [0], "junk": []},
        {
            "bbx": np.asarray([0.0, 0.0, 99.0, 3.0]), "easy": np.asarray([], np.int64),
            "hard": np.asarray([2]), "junk": np.asarray([0, 1]),
        },
    ]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    held = {"imlist": gallery, "qimlist": queries, "gnd": gnd}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
    rows = {f"jpg/{name}.jpg": ("gallery", None, None) for name in gallery}
    return wrote(root, rows | {f"jpg/{name}.jpg": ("query", None, None) for name in queries})


def met(root):
    database = [{"id": 7, "path": "MET/7/0.jpg"}, {"id": 7, "path": "MET/7/1.jpg"}, {"id": 9, "path": "MET/9/0.jpg"}]
    asked = [{"path": "test_met/a.jpg", "MET_id": 9}, {"path": "test_other/b.jpg"}]
    tuned = [{"path": "test_met/c.jpg", "MET_id": 7}]
    (root / "ground_truth").mkdir(parents=True)
    for name, held in (("MET_database", database), ("testset", asked), ("valset", tuned)):
        (root / "ground_truth" / f"{name}.json").write_text(json.dumps(held))
    lists = {"gallery": database, "query": asked, "val": tuned}
    rows = [(f"images/{one['path']}", split) for split, listed in lists.items() for one in listed]
    return wrote(root, {file: (split, None, None) for file, split in rows})


def amstertime(root):
    rows = {"old/dam.jpg": "query", "old/rokin.png": "query", "new/dam.jpg": "gallery", "new/rokin.jpg": "gallery"}
    return wrote(root, {file: (split, None, None) for file, split in rows.items()})


def spair(root):
    """Two cats in two pairs, one each way, and two dogs that have no point in common."""
    start = "JPEGImages"
    pairs = {
        "test/1-a-b:cat": ("cat", "a", "b", [[1, 2], [3, 4]], [[5, 6], [7, 8]], [1, 1, 9, 8]),
        "test/2-b-a:cat": ("cat", "b", "a", [[5, 6]], [[1, 2]], [0, 0, 4, 8]),
        "trn/3-c-d:dog": ("dog", "c", "d", [], [], [1, 1, 2, 2]),
    }
    for name, (category, one, other, source, target, box) in pairs.items():
        file = root / "PairAnnotation" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        held = {
            "category": category, "src_imname": f"{one}.jpg", "trg_imname": f"{other}.jpg", "src_kps": source,
            "trg_kps": target, "src_bndbox": [0, 0, 1, 1], "trg_bndbox": box, "kps_ids": ["0"] * len(source),
        }  # fmt: skip
        file.write_text(json.dumps(held))
    rows = {f"{start}/cat/{name}.jpg": ("test", 0, "cat") for name in "ab"}
    return wrote(root, rows | {f"{start}/dog/{name}.jpg": ("train", 1, "dog") for name in "cd"})


def davis(root):
    """Two objects in a clip of three frames; test-dev tells of the first frame alone."""
    text(root, "ImageSets/2017/val.txt", "goat")
    text(root, "ImageSets/2017/train.txt", "bear")
    clips = {"bear": 1, "goat": 3}
    for clip, frames in clips.items():
        for frame in range(frames):
            mask = Image.fromarray(np.tile(np.arange(12, dtype=np.uint8) // 5 + 10 * frame, (10, 1)), "P")
            mask.putpalette([n % 256 for n in range(768)])
            file = root / f"Annotations/480p/{clip}/{frame:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask.save(file)
    rows = [(clip, frame) for clip, frames in clips.items() for frame in range(frames)]
    splits = {"bear": "train", "goat": "val"}
    return wrote(root, {f"JPEGImages/480p/{clip}/{frame:05}.jpg": (splits[clip], None, None) for clip, frame in rows})


def caltech101(root, count=33):
    """With 33 images a class; which ones are for training is our draw, so no split is told."""
    names = ["BACKGROUND_Google", "Faces_easy"]
    files = [(f"101_ObjectCategories/{name}/image_{n:04}.jpg", name) for name in names for n in range(1, count + 1)]
    return wrote(root, {file: (None, names.index(name), name) for file, name in files})


def depth(root, name, values):
    """A depth map of 16 bits."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint16)).save(root / name)


def nyu_depth_v2(root):
    train = [("/kitchen_0028b/", "00045"), ("/attic_0001/", "00002")]
    test = [("bathroom/", "00045")]
    places = {"train": "sync", "test": "official_splits/test/"}
    rows = {}
    for split, named in (("train", train), ("test", test)):
        pairs = [(f"{scene}rgb_{number}.jpg", f"{scene}sync_depth_{number}.png") for scene, number in named]
        text(root, f"nyu_{split}.txt", *(f"{image} {map_} 518.8579" for image, map_ in pairs))
        for image, map_ in pairs:
            depth(root, f"{places[split]}{map_}", np.full((10, 12), 1000 + len(rows)))
            rows[f"{places[split]}{image}"] = (split, None, None)
    return wrote(root, rows)


def kitti_eigen(root):
    """With the annotated depth where the benchmark's archive has it, and drives as they are unpacked."""
    lists = {"train": [(57, 311), (57, 312)], "test": [(2, 69)]}
    rows = {}
    for split, named in lists.items():
        drives = [(f"2011_09_26_drive_{drive:04}_sync", f"{frame:010}.png") for drive, frame in named]
        lines = [
            f"2011_09_26/{drive}/image_02/data/{frame} {drive}/proj_depth/groundtruth/image_02/{frame} 721.5377"
            for drive, frame in drives
        ]
        text(root, f"eigen_{split}_files_with_gt.txt", *lines)
        place = {"train": "train", "test": "val"}[split]
        for drive, frame in drives:
            depth(
                root,
                f"{place}/{drive}/proj_depth/groundtruth/image_02/{frame}",
                np.full((10, 12), 256 * (2 + len(rows))),
            )
            rows[f"raw/2011_09_26/{drive}/image_02/data/{frame}"] = (split, None, None)
    return wrote(root, rows)


MADE = {
    "imagenet": imagenet, "imagenet_v2": imagenet_v2, "imagenet_wnids": imagenet_wnids,
    "inaturalist2018": inaturalist2018, "inaturalist2021": inaturalist2021, "places205": places205, "food101": food101,
    "cifar10": cifar10, "cifar100": cifar100, "sun397": sun397, "cars": cars, "aircraft": aircraft, "voc2007": voc2007,
    "voc2012_masks": voc2012_masks, "ade20k": ade20k, "cityscapes": cityscapes,
    "dtd": dtd, "pets": pets, "caltech101": caltech101, "flowers102": flowers102, "cub200": cub200,
    "landmarks": landmarks, "met": met, "amstertime": amstertime, "spair": spair, "davis": davis,
    "nyu_depth_v2": nyu_depth_v2, "kitti_eigen": kitti_eigen,
}  # fmt: skip
CALLED = {"imagenet_wnids": "imagenet-a", "amstertime": "AmsterTime"}
"""What the folder of a tiny copy must be called to be told from others."""
OTHERS = {"imagenet": imagenet_kaggle, "cars": cars_in_one}
"""Second forms."""
