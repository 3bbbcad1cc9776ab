"""What is done to face crops before a model is trained on them.

picture      a crop with landmarks and mask, and what a draw is
strategies   the augmentation of each recipe, by name
geometry     flip, turn, resize, pad; landmarks and mask follow
colours      brightness, contrast, hue, saturation, principal axes, grey
quality      JPEG, noise, blur, sharpness, resolution, traces of generators
cutouts      the DFDC winner's: a landmark, half the face, part of the picture
face         where the face lies, and shapes on it
selfblend    self-blended images: options and one-line use
families     how the pasted face differs, and where it is pasted
blend        one drawn self-blend, for a picture or a clip
blendmask    its mask
warp         distortion of a face
course       what a blend does from frame to frame
sheet        a contact sheet to look at
"""

from train.augment.picture import Draw, Picture
from train.augment.selfblend import BLENDS, SelfBlend, self_blend
from train.augment.sheet import contact_sheet
from train.augment.strategies import STRATEGIES, Strategy, strategy

__all__ = [
    "BLENDS",
    "STRATEGIES",
    "Draw",
    "Picture",
    "SelfBlend",
    "Strategy",
    "contact_sheet",
    "self_blend",
    "strategy",
]
