# Generated from the cards of this folder by `make stubs`; not edited by hand.
from interneuron.steer.breaking_bad_tokens import FeatureSteering as FeatureSteering
from interneuron.steer.breaking_bad_tokens import SAEFeatureSteer as SAEFeatureSteer
from interneuron.steer.breaking_bad_tokens import rank_toxic_features as rank_toxic_features
from interneuron.steer.lineas import AffineMaps as AffineMaps
from interneuron.steer.lineas import LinearAcT as LinearAcT
from interneuron.steer.lineas import LinEAS as LinEAS
from interneuron.steer.lineas import sorted_w2 as sorted_w2
from interneuron.steer.mean_difference import MeanDifference as MeanDifference
from interneuron.steer.reasoning_control_vectors import ControlVectors as ControlVectors
from interneuron.steer.reasoning_control_vectors import ReasoningVector as ReasoningVector
from interneuron.steer.reasoning_control_vectors import reading_vector as reading_vector
from interneuron.steer.weighted_steering_controller import ControllerNetwork as ControllerNetwork
from interneuron.steer.weighted_steering_controller import SteeringController as SteeringController
