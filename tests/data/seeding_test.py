from keras_switch.data.seeding import NOISE, SHUFFLE, random_generator


def test_a_generator_is_a_function_of_its_arguments():
    first = random_generator(1, NOISE, 2).random(3)
    assert random_generator(1, NOISE, 2).random(3).tolist() == first.tolist()
    for other in ((2, NOISE, 2), (1, SHUFFLE, 2), (1, NOISE, 3)):
        assert random_generator(*other).random(3).tolist() != first.tolist()


def test_the_stream_is_the_same_in_every_release_of_numpy():
    drawn = random_generator(0, NOISE, 0).random(2).tolist()
    assert drawn == [0.6073659924129827, 0.5037305356300301]
