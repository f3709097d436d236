"""What is known of the models without building them: who published each, and what it takes."""

from typing import NamedTuple


class About(NamedTuple):
    """A published network."""

    input: tuple[int, int, int]
    """Height, width and channels of the images it was made for."""
    parameters: int
    """How many there are for these, which a test counts again."""
    multiply_adds: int | None
    """How many an evaluation of one of these takes, in convolutions and dense layers, which a test counts again; None
    if not known."""
    what: str
    """What it is."""
    authors: str = ""
    """Who published it."""
    year: int | None = None
    """When."""
    published: str = ""
    """What it was published with: the data, and the result where one is known. An accuracy of torchvision's is of its
    weights with its recipe (the first, where there are two), by the metadata that it keeps with them."""


_MNIST, _CIFAR, _IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
_LECUN, _KRIZHEVSKY = ("LeCun et al.", 1998), ("Krizhevsky, Sutskever, Hinton", 2012)
_VGG, _SZEGEDY = ("Simonyan, Zisserman", 2014), ("Szegedy et al.", 2014)
_HE, _HE_V2, _XIE = ("He et al.", 2015), ("He et al.", 2016), ("Xie et al.", 2016)
_WIDE, _HUANG = ("Zagoruyko, Komodakis", 2016), ("Huang et al.", 2016)

ABOUT: dict[str, About] = {
    "fully_connected": About(_MNIST, 266_610, 266_200, "dense layers of 300 and 100, the baseline", *_LECUN, "MNIST"),
    "locally_connected": About(
        _MNIST, 423_038, 416_520, "LeNet-5 without shared weights, the other baseline", "LeCun", 1989, ""
    ),
    "lenet5": About((32, 32, 1), 60_000, 415_680, "LeNet-5 as published", *_LECUN, "MNIST, 0.95 % error"),
    "lenet5_modern": About(_MNIST, 61_706, 416_520, "LeNet-5 as usually built today", *_LECUN, "MNIST"),
    "cs231n_cifar10": About(
        _CIFAR,
        6_440,
        1_775_680,
        "(conv-relu-conv-relu-pool) x 3, the lectures' first network",
        "CS231n",
        2015,
        "CIFAR-10",
    ),
    "convnetjs_cifar10": About(
        _CIFAR, 22_466, 3_920_000, "ConvNetJS's demonstration on CIFAR-10", "Karpathy", 2014, "CIFAR-10, about 80 %"
    ),
    "convnetjs_mnist": About(
        (24, 24, 1), 5_994, 578_560, "ConvNetJS's demonstration on MNIST", "Karpathy", 2014, "MNIST"
    ),
    "geron_fashion": About(
        _MNIST, 1_413_834, 89_466_496, "Géron's network for Fashion-MNIST", "Géron", 2019, "Fashion-MNIST, 92 %"
    ),
    "alexnet": About(
        (227, 227, 3),
        60_965_224,
        724_406_816,
        "AlexNet, in two groups",
        *_KRIZHEVSKY,
        "ILSVRC-2010, 37.5 % top-1 error",
    ),
    "alexnet_ungrouped": About(
        (227, 227, 3), 62_378_344, 1_135_256_096, "AlexNet without groups", *_KRIZHEVSKY, "ImageNet"
    ),
    "alexnet_torchvision": About(
        _IMAGENET,
        61_100_840,
        714_188_480,
        "torchvision's AlexNet",
        "Krizhevsky",
        2014,
        "ImageNet, 56.52 % top-1 (torchvision)",
    ),
    "zfnet": About(
        _IMAGENET,
        62_357_608,
        1_168_032_896,
        "ZFNet: AlexNet with smaller first windows",
        "Zeiler, Fergus",
        2013,
        "ILSVRC-2012, ensemble of a variant 14.8 % top-5 error",
    ),
    "vgg11": About(
        _IMAGENET, 132_863_336, 7_609_090_048, "VGG, configuration A", *_VGG, "ImageNet, 69.02 % top-1 (torchvision)"
    ),
    "vgg13": About(
        _IMAGENET, 133_047_848, 11_308_466_176, "VGG, configuration B", *_VGG, "ImageNet, 69.93 % top-1 (torchvision)"
    ),
    "vgg16": About(
        _IMAGENET, 138_357_544, 15_470_264_320, "VGG, configuration D", *_VGG, "ImageNet, 71.59 % top-1 (torchvision)"
    ),
    "vgg16c": About(
        _IMAGENET, 133_638_952, 11_770_888_192, "VGG, configuration C, with 1x1 convolutions", *_VGG, "ILSVRC-2014"
    ),
    "vgg19": About(
        _IMAGENET, 143_667_240, 19_632_062_464, "VGG, configuration E", *_VGG, "ImageNet, 72.38 % top-1 (torchvision)"
    ),
    "vgg11_bn": About(_IMAGENET, 132_868_840, 7_609_090_048, "VGG A with batch norm", *_VGG, "ImageNet (torchvision)"),
    "vgg13_bn": About(
        _IMAGENET, 133_053_736, 11_308_466_176, "VGG B with batch norm", *_VGG, "ImageNet, 71.59 % top-1 (torchvision)"
    ),
    "vgg16_bn": About(
        _IMAGENET, 138_365_992, 15_470_264_320, "VGG D with batch norm", *_VGG, "ImageNet, 73.36 % top-1 (torchvision)"
    ),
    "vgg16c_bn": About(_IMAGENET, 133_647_400, 11_770_888_192, "VGG C with batch norm", *_VGG, ""),
    "vgg19_bn": About(
        _IMAGENET, 143_678_248, 19_632_062_464, "VGG E with batch norm", *_VGG, "ImageNet, 74.22 % top-1 (torchvision)"
    ),
    "googlenet": About(
        _IMAGENET,
        13_378_280,
        1_582_671_872,
        "GoogLeNet with its auxiliary heads",
        *_SZEGEDY,
        "ILSVRC-2014, 68.7 % top-1 (BVLC)",
    ),
    "googlenet_torchvision": About(
        _IMAGENET,
        13_004_888,
        1_498_376_192,
        "torchvision's GoogLeNet, with batch norm",
        *_SZEGEDY,
        "ImageNet, 69.78 % top-1 (torchvision)",
    ),
    "resnet18": About(_IMAGENET, 11_689_512, 1_814_073_344, "ResNet-18", *_HE, "ImageNet, 69.76 % top-1 (torchvision)"),
    "resnet34": About(_IMAGENET, 21_797_672, 3_663_761_408, "ResNet-34", *_HE, "ImageNet, 73.31 % top-1 (torchvision)"),
    "resnet50": About(
        _IMAGENET,
        25_557_032,
        4_089_184_256,
        "ResNet-50, the stride in the 3x3 convolution (v1.5)",
        *_HE,
        "ImageNet, 76.13 % top-1 (torchvision)",
    ),
    "resnet101": About(
        _IMAGENET, 44_549_160, 7_801_405_440, "ResNet-101 (v1.5)", *_HE, "ImageNet, 77.37 % top-1 (torchvision)"
    ),
    "resnet152": About(
        _IMAGENET, 60_192_808, 11_513_626_624, "ResNet-152 (v1.5)", *_HE, "ImageNet, 78.31 % top-1 (torchvision)"
    ),
    "resnet200": About(_IMAGENET, 64_673_832, 15_007_481_856, "ResNet-200 (v1.5)", *_HE_V2, "ImageNet"),
    "resnet50_v1": About(
        _IMAGENET,
        25_557_032,
        3_857_973_248,
        "ResNet-50 as published, the stride in the first 1x1 convolution",
        *_HE,
        "ImageNet, 24.7 % top-1 error",
    ),
    "resnet101_v1": About(
        _IMAGENET, 44_549_160, 7_570_194_432, "ResNet-101 as published", *_HE, "ImageNet, 23.6 % top-1 error"
    ),
    "resnet152_v1": About(
        _IMAGENET, 60_192_808, 11_282_415_616, "ResNet-152 as published", *_HE, "ImageNet, 23.0 % top-1 error"
    ),
    "resnet18_v2": About(
        _IMAGENET, 11_687_720, 1_814_073_344, "ResNet-18, norm and activation first", *_HE_V2, "ImageNet"
    ),
    "resnet34_v2": About(
        _IMAGENET, 21_795_880, 3_663_761_408, "ResNet-34, norm and activation first", *_HE_V2, "ImageNet"
    ),
    "resnet50_v2": About(
        _IMAGENET, 25_549_352, 4_089_184_256, "ResNet-50, norm and activation first", *_HE_V2, "ImageNet"
    ),
    "resnet101_v2": About(
        _IMAGENET, 44_541_480, 7_801_405_440, "ResNet-101, norm and activation first", *_HE_V2, "ImageNet"
    ),
    "resnet152_v2": About(
        _IMAGENET, 60_185_128, 11_513_626_624, "ResNet-152, norm and activation first", *_HE_V2, "ImageNet"
    ),
    "resnext50_32x4d": About(
        _IMAGENET,
        25_028_904,
        4_230_479_872,
        "ResNeXt-50, 32 groups of 4",
        *_XIE,
        "ImageNet, 77.62 % top-1 (torchvision)",
    ),
    "resnext101_32x8d": About(
        _IMAGENET,
        88_791_336,
        16_414_015_488,
        "ResNeXt-101, 32 groups of 8",
        *_XIE,
        "ImageNet, 79.31 % top-1 (torchvision)",
    ),
    "resnext101_64x4d": About(
        _IMAGENET,
        83_455_272,
        15_460_270_080,
        "ResNeXt-101, 64 groups of 4",
        *_XIE,
        "ImageNet, 83.25 % top-1 (torchvision)",
    ),
    "wide_resnet50_2": About(
        _IMAGENET,
        68_883_240,
        11_398_021_120,
        "ResNet-50, the 3x3 convolutions twice as wide",
        *_WIDE,
        "ImageNet, 78.47 % top-1 (torchvision)",
    ),
    "wide_resnet101_2": About(
        _IMAGENET,
        126_886_696,
        22_753_050_624,
        "ResNet-101, the 3x3 convolutions twice as wide",
        *_WIDE,
        "ImageNet, 78.85 % top-1 (torchvision)",
    ),
    "cifar_resnet20": About(
        _CIFAR, 269_722, 40_551_040, "ResNet-20 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 8.75 % error"
    ),
    "cifar_resnet32": About(
        _CIFAR, 464_154, 68_862_592, "ResNet-32 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 7.51 % error"
    ),
    "cifar_resnet44": About(
        _CIFAR, 658_586, 97_174_144, "ResNet-44 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 7.17 % error"
    ),
    "cifar_resnet56": About(
        _CIFAR, 853_018, 125_485_696, "ResNet-56 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 6.97 % error"
    ),
    "cifar_resnet110": About(
        _CIFAR, 1_727_962, 252_887_680, "ResNet-110 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 6.43 % error, best of 5"
    ),
    "cifar_resnet1202": About(
        _CIFAR, 19_421_274, 2_829_238_912, "ResNet-1202 for CIFAR, shortcuts A", *_HE, "CIFAR-10, 7.93 % error"
    ),
    "cifar_preact_resnet110": About(
        _CIFAR,
        1_730_522,
        253_149_824,
        "ResNet-110 for CIFAR, norm and activation first",
        *_HE_V2,
        "CIFAR-10, 6.37 % error",
    ),
    "cifar_preact_resnet164": About(
        _CIFAR,
        1_703_258,
        247_646_720,
        "ResNet-164 for CIFAR, norm and activation first",
        *_HE_V2,
        "CIFAR-10, 5.46 % error",
    ),
    "cifar_preact_resnet1001": About(
        _CIFAR,
        10_327_706,
        1_490_995_712,
        "ResNet-1001 for CIFAR, norm and activation first",
        *_HE_V2,
        "CIFAR-10, 4.92 % error",
    ),
    "cifar_wide16_4": About(_CIFAR, 2_748_890, 392_612_352, "WRN-16-4", *_WIDE, "CIFAR-10"),
    "cifar_wide16_8": About(_CIFAR, 10_961_370, 1_548_145_664, "WRN-16-8", *_WIDE, "CIFAR-10"),
    "cifar_wide28_10": About(_CIFAR, 36_479_194, 5_243_328_768, "WRN-28-10", *_WIDE, "CIFAR-10, 4.00 % error"),
    "cifar_wide40_2": About(_CIFAR, 2_243_546, 327_599_360, "WRN-40-2", *_WIDE, "CIFAR-10"),
    "cifar_wide40_4": About(_CIFAR, 8_949_210, 1_298_582_016, "WRN-40-4", *_WIDE, "CIFAR-10"),
    "densenet121": About(
        _IMAGENET, 7_978_856, 2_834_161_664, "DenseNet-121", *_HUANG, "ImageNet, 74.43 % top-1 (torchvision)"
    ),
    "densenet161": About(
        _IMAGENET, 28_681_000, 7_727_907_072, "DenseNet-161", *_HUANG, "ImageNet, 77.14 % top-1 (torchvision)"
    ),
    "densenet169": About(
        _IMAGENET, 14_149_480, 3_359_843_328, "DenseNet-169", *_HUANG, "ImageNet, 75.60 % top-1 (torchvision)"
    ),
    "densenet201": About(
        _IMAGENET, 20_013_928, 4_291_365_888, "DenseNet-201", *_HUANG, "ImageNet, 76.90 % top-1 (torchvision)"
    ),
    "cifar_densenet40_12": About(
        _CIFAR, 1_019_722, 264_812_928, "DenseNet for CIFAR, L = 40, k = 12", *_HUANG, "CIFAR-10, 5.24 % error"
    ),
    "cifar_densenet100_12": About(
        _CIFAR, 6_979_642, 1_769_516_448, "DenseNet for CIFAR, L = 100, k = 12", *_HUANG, "CIFAR-10, 4.10 % error"
    ),
    "cifar_densenet100_24": About(
        _CIFAR, 27_249_082, 6_889_347_744, "DenseNet for CIFAR, L = 100, k = 24", *_HUANG, "CIFAR-10, 3.74 % error"
    ),
    "cifar_densenet_bc100_12": About(
        _CIFAR, 769_162, 287_929_692, "DenseNet-BC for CIFAR, L = 100, k = 12", *_HUANG, "CIFAR-10, 4.51 % error"
    ),
    "cifar_densenet_bc250_24": About(
        _CIFAR, 15_324_406, 5_418_785_724, "DenseNet-BC for CIFAR, L = 250, k = 24", *_HUANG, "CIFAR-10, 3.62 % error"
    ),
    "cifar_densenet_bc190_40": About(
        _CIFAR, 25_624_430, 9_301_945_740, "DenseNet-BC for CIFAR, L = 190, k = 40", *_HUANG, "CIFAR-10, 3.46 % error"
    ),
}
